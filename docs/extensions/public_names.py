"""Pages of classes have what scxtrimo defines, and types link to where they are documented."""

import warnings
from collections.abc import Iterator
from importlib import import_module

from numpy.typing import ArrayLike
from sphinx import addnodes
from sphinx.ext import intersphinx

# Signatures of named tuples are as in the code.
AS_IMPORTED = {"Tensor": "torch.Tensor", "np.ndarray": "numpy.ndarray"}

warnings.filterwarnings("ignore", "'sphinx_autodoc_typehints", DeprecationWarning)


def setup(app):
    """Connect what is below to the events of Sphinx."""
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("doctree-read", write_in_full)
    app.connect("missing-reference", find_public_name, priority=900)  # after intersphinx
    app.config.typehints_formatter = keep_aliases
    return {"parallel_read_safe": True}


def skip_foreign(app, what, name, obj, skip, options):
    """Skip members of a class that torch, lightning or scvi-tools define, and plain values."""
    function = getattr(obj, "fget", None) or getattr(obj, "func", None) or obj
    module = getattr(function, "__module__", None) or ""
    return None if module.split(".")[0] == "scxtrimo" else True


def show_public_bases(app, name, obj, options, bases):
    """Replace private bases, such as mixins, by the nearest public ones."""
    public = [base for base in obj.__mro__[1:] if list(public_names(full_name(base)))]
    bases[:] = [base for base in public if not any(base in other.__mro__[1:] for other in public)]


def keep_aliases(annotation, config=None):
    """Write the name of numpy's alias instead of all it stands for."""
    return ":py:data:`~numpy.typing.ArrayLike`" if annotation == ArrayLike else None


def write_in_full(app, doctree):
    """Write names in full that are not those of this package."""
    for node in doctree.findall(addnodes.pending_xref):
        node["reftarget"] = AS_IMPORTED.get(node["reftarget"], node["reftarget"])


def find_public_name(app, env, node, contnode):
    """Resolve a reference to where an object is defined by a name under which it is documented."""
    if node.get("refdomain") != "py":
        return None
    domain, wanted = env.domains.python_domain, node["reftarget"]
    for name in public_names(wanted):
        node["reftarget"] = name
        found = domain.resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], name, node, contnode
        ) or intersphinx.missing_reference(app, env, node, contnode)
        if found is not None:
            return found
    node["reftarget"] = wanted
    return None


def full_name(cls):
    """Return the dotted name of where a class is defined."""
    return f"{cls.__module__}.{cls.__qualname__}"


def public_names(name) -> Iterator[str]:
    """Yield the names without private parts under which an object can be imported."""
    module, _, attribute = name.rpartition(".")
    try:
        target = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return  # not the name of an object of a module: a method, or a name without module
    defined_in = getattr(target, "__module__", None) or module
    for path in dict.fromkeys((module, defined_in)):
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            package = ".".join(parts[:length])
            is_private = any(part.startswith("_") for part in parts[:length])
            if not is_private and getattr(import_module(package), attribute, None) is target:
                yield f"{package}.{attribute}"

"""Pages of classes have what scxtrimo defines, under the names that users import."""

from functools import cache
from importlib import import_module

from sphinx import addnodes


def setup(app):
    """Connect what is below to the events of Sphinx."""
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("doctree-read", link_public_names)
    return {"parallel_read_safe": True}


def skip_foreign(app, what, name, obj, skip, options):
    """Skip members of a class that torch, lightning or scvi-tools define, and plain values."""
    function = getattr(obj, "fget", None) or getattr(obj, "func", None) or obj
    module = getattr(function, "__module__", None) or ""
    return None if module.split(".")[0] == "scxtrimo" else True


def show_public_bases(app, name, obj, options, bases):
    """Replace private bases, such as mixins, by the nearest public ones."""
    public = [base for base in obj.__mro__[1:] if "._" not in public_name(full_name(base))]
    bases[:] = [
        base for base in public if not any(base in other.__mro__[1:] for other in public)
    ] or [object]


def link_public_names(app, doctree):
    """Let references to where an object is defined point to where it is documented."""
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") == "py":
            node["reftarget"] = public_name(node["reftarget"])


def full_name(cls):
    """Return the dotted name of where a class is defined."""
    return f"{cls.__module__}.{cls.__qualname__}"


@cache
def public_name(name):
    """Return the shortest dotted name under which this very object can be imported."""
    module, _, attribute = name.rpartition(".")
    try:
        target = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return name  # not the name of an object of a module: a method, or a name without module
    parts = module.split(".")
    for length in range(1, len(parts)):
        candidate = ".".join(parts[:length])
        if getattr(import_module(candidate), attribute, None) is target:
            return f"{candidate}.{attribute}"
    return name

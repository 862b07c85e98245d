"""Every public object is documented, with examples, and listed in the API pages."""

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = [
    "scxtrimo",
    *(
        f"scxtrimo.{name}"
        for name in (
            *("annotation", "checkpoint", "cli", "data", "datasets", "demo", "drugs", "model"),
            *("nn", "perturbation", "pl", "pp", "pretraining", "protein", "tl", "train"),
        )
    ),
]
# Their examples need published weights, an account, or a compiler.
NOT_RUN = {
    *(f"scxtrimo.datasets.{name}" for name in ("pbmc3k", "kang", "norman", "deepdds")),
    "scxtrimo.checkpoint.PublishedCheckpoint",
    *(
        f"scxtrimo.{package}.{model}.{method}"
        for package in ("annotation", "model", "perturbation")
        for model in ("XTrimoGene", "XTrimoGeneAnnotator", "XTrimoGenePerturbation")
        for method in ("compile", "push_to_hub", "from_scfoundation")
    ),
}
API_PAGES = Path(__file__).parents[1] / "docs"


def public_objects() -> dict[str, object]:
    """Return what the packages export, each once, without modules and the version."""
    found: dict[str, object] = {}
    for package in map(import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            is_new = not any(value is other for other in found.values())
            if is_new and not inspect.ismodule(value) and name != "__version__":
                found[f"{package.__name__}.{name}"] = value
    return found


def own_members(cls: type) -> Iterator[tuple[str, object, bool]]:
    """Yield public methods and properties that scxtrimo defines, and whether others do as well.

    Those of another public class are documented there.
    """
    elsewhere = [value for value in public_objects().values() if value is not cls]
    for name in dir(cls):
        owners = [base for base in cls.__mro__ if name in vars(base)]
        if name.startswith("_") or not is_ours(owners[0]) or owners[0] in elsewhere:
            continue
        member = vars(owners[0])[name]
        member = getattr(member, "__func__", member)
        if (
            inspect.isfunction(member)
            or isinstance(getattr(cls, name), property)
            or is_cached(member)
        ):
            yield name, member, not all(map(is_ours, owners))


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "scxtrimo"


def is_cached(member: object) -> bool:
    return type(member).__name__ == "cached_property"


def sections(documented: object) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by name; the summary has none."""
    doc = inspect.getdoc(documented) or ""
    parts = re.split(r"(?:^|\n)(\w[\w ]*)\n-{3,}\n", doc)
    return {"": parts[0].strip()} | dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> list[str]:
    """Return the names of a Parameters section, several of which may share a line."""
    lines = [line for line in section.splitlines() if line and not line[0].isspace()]
    return [name.strip() for line in lines for name in line.split(" : ")[0].split(",")]


def parameters(function: object) -> list[str]:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        stars.get(parameter.kind, "") + name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    ]


def fields_documented_below(documented: type) -> set[str]:
    """Return the fields of a dataclass that have their documentation under them."""
    (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(documented))).body
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        node.target.id
        for node, below in pairs
        if isinstance(node, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def inherited_fields(documented: object) -> set[str]:
    """Return the fields that a dataclass has from others, which document them."""
    bases = documented.__mro__[1:] if inspect.isclass(documented) else ()
    return {field.name for base in bases if is_dataclass(base) for field in fields(base)}


def has_own_signature(cls: type) -> bool:
    makers = ("__init__", "__new__")
    return is_ours(
        next(base for base in cls.__mro__ if any(name in vars(base) for name in makers))
    )


def faults(documented: object, needs_example: bool = True, runs: bool = True) -> Iterator[str]:
    """Yield what a docstring lacks."""
    found = sections(documented)
    if not found[""]:
        yield "no docstring"
        return
    if inspect.isfunction(documented) or (
        inspect.isclass(documented) and has_own_signature(documented)
    ):
        wanted, there = parameters(documented), described(found.get("Parameters", ""))
        optional = inherited_fields(documented)
        if is_dataclass(documented):
            optional |= fields_documented_below(documented)
        if missing := [name for name in wanted if name not in there and name not in optional]:
            yield f"Parameters lack {', '.join(missing)}"
        if unknown := [name for name in there if name not in wanted or there.count(name) > 1]:
            yield f"Parameters have {', '.join(unknown)}"
    if inspect.isfunction(documented):
        returned = documented.__annotations__.get("return", "None")
        if returned not in ("None", "NoReturn") and not found.keys() & {"Returns", "Yields"}:
            yield "no Returns or Yields"
    examples = doctest.DocTestParser().get_examples(found.get("Examples", ""))
    if needs_example and not examples:
        yield "no Examples"
    skipped = [example.options.get(doctest.SKIP, False) for example in examples]
    if runs and skipped and all(skipped):
        yield "Examples do not run"


def all_faults(name: str, documented: object) -> Iterator[str]:
    """Yield what the docstrings of an object and its members lack.

    A member has an example of its own or is in that of its class. What trainers and networks call
    (methods that torch, lightning or scvi-tools define too, except in models) needs none.
    """
    if name.startswith("scxtrimo.nn."):  # parts of the network: a line of shapes is enough
        yield from () if inspect.getdoc(documented) else (f"{name}: no docstring",)
        return
    yield from (f"{name}: {fault}" for fault in faults(documented, runs=name not in NOT_RUN))
    if not inspect.isclass(documented):
        return
    of_class = sections(documented).get("Examples", "")
    for member, value, is_override in own_members(documented):
        is_hook = is_override and not name.startswith("scxtrimo.model.")
        is_shown = re.search(rf"\.{member}\b", of_class)
        path = f"{name}.{member}"
        for fault in faults(value, not (is_hook or is_shown), path not in NOT_RUN):
            yield f"{path}: {fault}"


def test_public_objects_are_documented():
    objects = public_objects()
    documented = {
        name: value
        for name, value in objects.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert len(documented) > 100
    missing = [fault for item in documented.items() for fault in all_faults(*item)]
    assert not missing, f"{len(missing)} faults:\n" + "\n".join(missing)


@pytest.mark.skipif(not API_PAGES.exists(), reason="only where the documentation is")
def test_api_pages_list_all_public_objects_and_nothing_else():
    text = "\n".join(page.read_text() for page in (API_PAGES / "api").glob("*.md"))
    tables = re.findall(r"\.\. autosummary::\n(?: +:.*\n)*\n((?: +.*\n)+)", text)
    listed = [f"scxtrimo.{name}" for table in tables for name in table.split()]
    listed += [f"scxtrimo.{name}" for name in re.findall(r"\.\. py:data:: (\S+)", text)]
    assert len(listed) == len(set(listed)), "listed twice"
    objects = public_objects()
    public = {id(value): name for name, value in objects.items()}
    found = {}
    for name in listed:
        package, _, attribute = name.rpartition(".")  # there are modules with the same names
        found[id(getattr(import_module(package), attribute))] = name
    assert not {public[key] for key in public.keys() - found.keys()}, "public, not listed"
    assert not {found[key] for key in found.keys() - public.keys()}, "listed, not public"


def test_faults_are_found():
    def documented_badly(count: int, unit: str = "cells") -> str:
        """Return something.

        Parameters
        ----------
        count
            How many.
        units
            Of what.

        Examples
        --------
        >>> documented_badly(3)  # doctest: +SKIP
        """
        return f"{count} {unit}"

    assert list(faults(documented_badly)) == [
        "Parameters lack unit",
        "Parameters have units",
        "no Returns or Yields",
        "Examples do not run",
    ]
    assert list(faults(lambda: None)) == ["no docstring"]

"""The shape of the code, counted: who imports whom, how far a call reaches, how much there is."""

import ast
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

import scxtrimo
from scxtrimo._lazy import RENAMED

PACKAGE = Path(scxtrimo.__file__).parent
WINGS = ("annotation", "perturbation", "drugs", "pretraining", "protein")
FACES = ("cli", "demo", "module")  # they bring everything together; nothing imports them
MAX_LINES = 24_600


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str, with_types: bool = True) -> tuple[set[str], set[str]]:
    """Return the modules of ours that a module imports, and the packages of others.

    ``with_types`` counts what type checkers alone import as well. What a package offers lazily, in
    its ``__init__.pyi``, does not count: these lists are the public face of the wings.
    """
    ours, others = set(), set()
    path = MODULES[name]
    within = list(path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text())
    left_out = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if node in left_out and not with_types:
            continue
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = within[: len(within) - node.level + 1]
            target = ".".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                full = f"{target}.{alias.name}".lstrip(".")
                ours.add(full if full in MODULES else target)
    return ours - {name}, others - {"__future__"}


def room(name: str) -> str:
    return name.split(".")[0]


def test_the_core_knows_no_wing_and_wings_do_not_know_each_other():
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imports(name)[0]
        if room(other) in (*WINGS, *FACES) and room(name) not in (room(other), *FACES)
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports(name, False)[0] & MODULES.keys() for name in MODULES}
    done, open_ = set(), []

    def visit(name: str) -> None:
        assert name not in open_, f"circle: {' -> '.join([*open_, name])}"
        if name in done:
            return
        open_.append(name)
        for other in graph[name]:
            visit(other)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_no_room_imports_another_in_both_directions():
    edges = {(room(name), room(other)) for name in MODULES for other in imports(name)[0] if other}
    both = {edge for edge in edges if edge[::-1] in edges and edge[0] != edge[1]}
    assert not both


def test_the_network_imports_torch_alone():
    for name in MODULES:
        if room(name) == "nn" and name != "nn":
            ours, others = imports(name)
            assert others - set(sys.stdlib_module_names) <= {"torch"}, name
            assert {room(other) for other in ours} <= {"nn"}, name


def test_names_of_files_are_not_repeated_in_the_core():
    names = [
        name.split(".")[-1] for name in MODULES if room(name) in ("nn", "train", "checkpoint")
    ]
    assert len(names) == len(set(names))


def files_entered(call) -> set[str]:
    """Return our files whose functions a call enters, in any thread."""
    entered = set()

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            entered.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    threading.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return {str(Path(file).relative_to(PACKAGE)) for file in entered}


def test_training_and_embedding_pass_through_few_files():
    cells = scxtrimo.datasets.pbmc68k()[:200].copy()
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    model = scxtrimo.model.XTrimoGene(cells, size="tiny")
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    trained = files_entered(lambda: model.train(max_epochs=1, **quiet))
    assert len(trained) <= 14, sorted(trained)
    embedded = files_entered(model.get_latent_representation)
    assert len(embedded) <= 8, sorted(embedded)


def test_public_classes_inherit_from_few_of_ours():
    for package in ("model", "data", "nn", "train", *WINGS):
        public = import_module(f"scxtrimo.{package}")
        for name in public.__all__:
            value = getattr(public, name)
            if isinstance(value, type):
                ours = [c for c in value.__mro__ if c.__module__.startswith("scxtrimo")]
                assert len(ours) <= 5, f"{name}: {[c.__name__ for c in ours]}"


def test_there_is_not_more_code_than_needed():
    assert sum(path.read_text().count("\n") for path in MODULES.values()) <= MAX_LINES


def test_importing_the_package_loads_neither_torch_nor_scvi():
    code = "import sys, scxtrimo; print([m for m in ('torch', 'scvi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mypy_finds_a_misspelt_method_of_a_model(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(
        "from scxtrimo.model import XTrimoGene, XTrimoGeneAnnotator\n"
        "def use(model: XTrimoGene, annotator: XTrimoGeneAnnotator) -> None:\n"
        "    model.get_latent_representation()\n"
        "    model.get_latent_representatoin()\n"
        "    annotator.predict()\n"
        "    annotator.predcit()\n"
    )
    # What others' packages offer does not matter here, and takes a minute to read.
    others = {other for name in MODULES for other in imports(name)[1]}
    skipped = ",".join(f"{name}.*" for name in sorted(others - set(sys.stdlib_module_names)))
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nmypy_path = {PACKAGE.parent}\nfollow_imports = silent\n"
        f"ignore_missing_imports = true\n[mypy-{skipped}]\nfollow_imports = skip\n"
    )
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path)]
    report = api.run([*options, str(tmp_path / "user.py")])[0]
    assert '"XTrimoGene" has no attribute "get_latent_representatoin"' in report
    assert '"XTrimoGeneAnnotator" has no attribute "predcit"' in report
    assert report.count("error:") == 2, report


def test_former_names_lead_to_the_new_ones_with_a_warning():
    for package, moved in RENAMED.items():
        former = import_module(f"scxtrimo.{package}")
        for new, names in moved.items():
            for name in names.split():
                with pytest.warns(FutureWarning, match=rf"use scxtrimo\.{new}\.{name}\."):
                    value = getattr(former, name)
                assert value is getattr(import_module(f"scxtrimo.{new}"), name)

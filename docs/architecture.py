"""Draw the architecture of the model and the map of the code.

python docs/architecture.py
"""

import ast
from pathlib import Path

from _canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SIZE, Canvas
from matplotlib.patches import Circle, Rectangle

DOCS = Path(__file__).parent
STATIC = DOCS / "_static"
PACKAGE = DOCS.parent / "src" / "scxtrimo"

# Position and count of the expressed genes of three cells; negative counts are masked.
N_GENES = 15
CELLS = [
    {0: 2, 2: -1, 3: 1, 6: 5, 9: -2, 10: 1, 13: 3},
    {1: 1, 5: 4, 8: -1, 12: 2},
    {3: -3, 4: 1, 7: 1, 10: 2, 11: -1, 14: 1},
]
CELL_COLOURS = [BLUE, ORANGE, GREEN]
SQUARE = 4.0


def square(canvas: Canvas, x: float, y: float, cell: int, count: int) -> None:
    """Draw an expressed gene: its count on the colour of its cell, or hatched if it is masked."""
    edge, fill = CELL_COLOURS[cell]
    masked = count < 0
    canvas.axes.add_patch(
        Rectangle(
            (x + 0.2, y + 0.2),
            SQUARE - 0.4,
            SQUARE - 0.4,
            edgecolor=edge,
            facecolor="white" if masked else fill,
            hatch="/////" if masked else None,
            linewidth=1.1,
        )
    )
    if not masked:
        canvas.text(x + SQUARE / 2, y + SQUARE / 2, str(count), size=SIZE - 1)


def counts(canvas: Canvas, top: float) -> None:
    """Draw the cells as rows of counts, most of which are not there."""
    canvas.text(0, top, "Counts: a cell is the genes it expresses", align="left", weight="bold")
    for cell, genes in enumerate(CELLS):
        y = top + 2.8 + 5 * cell
        canvas.text(0, y + SQUARE / 2, f"cell {cell + 1}", align="left", size=SIZE - 1)
        for gene in range(N_GENES):
            x = 10 + SQUARE * gene
            if gene in genes:
                square(canvas, x, y, cell, genes[gene])
            else:
                middle = (x + SQUARE / 2, y + SQUARE / 2)
                canvas.axes.add_patch(Circle(middle, 0.35, color="#B5BEC6"))
    x, y = 73, top + 2.8
    canvas.axes.add_patch(Circle((x + SQUARE / 2, y + SQUARE / 2), 0.35, color="#B5BEC6"))
    canvas.text(x + 5, y + 2, "zero: not stored,", align="left", size=SIZE - 1)
    canvas.text(x + 5, y + 4.8, "costs nothing", align="left", size=SIZE - 1)
    square(canvas, x, y + 8, 0, -1)
    canvas.text(x + 5, y + 8.6, "masked while", align="left", size=SIZE - 1)
    canvas.text(x + 5, y + 11.4, "training", align="left", size=SIZE - 1)


def packed(canvas: Canvas, top: float) -> None:
    """Draw what is left of all cells, one after the other."""
    canvas.text(
        0, top, "Masked genes out, cells packed without padding", align="left", weight="bold"
    )
    x, y = 10.0, top + 2.8
    for cell, genes in enumerate(CELLS):
        seen = [count for count in genes.values() if count > 0]
        for i, count in enumerate(seen):
            square(canvas, x + SQUARE * i, y, cell, count)
        end = x + SQUARE * len(seen)
        canvas.axes.plot([x + 0.3, end - 0.3], [y + 4.9] * 2, color=INK, lw=1.2)
        canvas.text((x + end) / 2, y + 6.8, f"cell {cell + 1}", size=SIZE - 1)
        x = end
    x = 73.0
    for cell, genes in enumerate(CELLS):
        for count in genes.values():
            if count < 0:
                square(canvas, x, y, cell, count)
                x += SQUARE
    canvas.text(73 + (x - 73) / 2, y + 6.8, "to be predicted", size=SIZE - 1)


def results(canvas: Canvas, top: float) -> None:
    """List what users get of each part."""
    canvas.text(0, top, "What you get", align="left", weight="bold")
    rows = [
        (GREEN, "Gene embedding", "a vector for each gene, to compare genes by"),
        (BLUE, "Cell vector", "latent representation: clusters, UMAP, mapped cells"),
        (BLUE, "Bottleneck decoder", "normalized expression, of any gene and batch"),
        (ORANGE, "Encoded genes", "gene embeddings in the context of a cell"),
        (ORANGE, "Masked regression", "imputed expression of genes that were not read"),
    ]
    y = top + 2.6
    for colour, part, result in rows:
        canvas.box(0, y, 31, 4.6, colour)
        canvas.text(15.5, y + 2.3, part, (0, y, 31, 4.6), size=SIZE - 1)
        canvas.text(33.5, y + 2.3, result, align="left", size=SIZE - 1)
        y += 5.5
    models = [
        ("Annotation", "cell types: from the latent\nrepresentation and genes"),
        ("Perturbations", "effects: from embeddings\nof genes and control cells"),
        ("Drugs", "on cell lines, read by\nsuch an encoder"),
    ]
    y += 1.2
    for i, (title, body) in enumerate(models):
        canvas.box(34 * i, y, 32, 10.6, PURPLE, title, body)


def architecture() -> None:
    """From counts to losses, and what users get out of it."""
    canvas = Canvas(176.5)
    counts(canvas, 2)
    canvas.arrow((40, 21.2), (40, 25))
    canvas.arrow((87, 21.2), (87, 25))
    packed(canvas, 27.6)
    canvas.arrow((23, 39.2), (23, 42.6))
    canvas.arrow((57, 39.2), (57, 42.6))

    canvas.box(
        0,
        43,
        46,
        15.5,
        GREY,
        "Value embedding",
        "$v$ = log(1 + $10^4$ count / total),\nauto-discretised: a soft\n"
        "mixture of 100 learned bins",
    )
    canvas.text(48.9, 50.6, "+", size=SIZE + 6, weight="bold")
    canvas.box(
        52,
        43,
        38,
        15.5,
        GREEN,
        "Gene embedding",
        "learned, one for each gene;\nthe queries of the decoders\nare made of it",
    )
    canvas.arrow((48.9, 53.5), (48.9, 62.6))

    canvas.box(
        0,
        63,
        90,
        12.2,
        GREY,
        "Transformer encoder",
        "over the expressed, unmasked genes of a cell (by default of the\n"
        "2,000 most variable) and a cell token; no cell sees another",
    )
    canvas.arrow((22, 75.2), (22, 79.2))
    canvas.arrow((69, 75.2), (69, 79.2))
    canvas.box(0, 79.6, 44, 9.4, BLUE, "Cell vector $z$", "cell token, mean and maximum")
    canvas.box(48, 79.6, 42, 9.4, ORANGE, "Encoded genes", "one vector for each that was read")
    canvas.arrow((22, 89), (22, 93))
    canvas.arrow((69, 89), (69, 93))

    canvas.box(
        0,
        93.4,
        44,
        12.2,
        BLUE,
        "Bottleneck decoder",
        "[$z$, batch] · queries of all genes,\nsoftmax: their share of the counts",
    )
    canvas.box(
        48,
        93.4,
        42,
        12.2,
        ORANGE,
        "Cross-attention decoder",
        "queries of masked genes attend\nto the encoded genes",
    )
    # which genes are asked for
    canvas.arrow((93.6, 32.4), (95.8, 32.4), (95.8, 99.5), (90.3, 99.5))
    canvas.box(
        48,
        107.4,
        42,
        9.4,
        ORANGE,
        "",
        "or, as published: a Performer\nover all genes, as only decoder",
        dashed=True,
    )
    canvas.arrow((95.8, 99.5), (95.8, 112.1), (90.3, 112.1))
    canvas.arrow((22, 105.6), (22, 119.6))
    canvas.arrow((69, 116.8), (69, 119.6))
    canvas.box(0, 120, 44, 9.8, GREY, "", "multinomial likelihood of all\ncounts, masked or not")
    canvas.text(46, 124.9, "+", size=SIZE + 4, weight="bold")
    canvas.box(
        48, 120, 42, 9.8, GREY, "", "squared error on $v$ of masked\ngenes, expressed or zero"
    )
    canvas.text(100, 124.9, "= loss", align="right", weight="bold", size=SIZE - 1)
    results(canvas, 134.5)
    canvas.save(STATIC / "architecture", png_pixels=900)


# Floors of the house, from the roof down: for each room its place, width and what it holds.
FLOORS = [
    {"cli": (0, 100, "the command line")},
    {"demo": (0, 100, "the whole way once")},
    {
        "annotation": (0, 18.4, "cell types"),
        "perturbation": (20.4, 18.4, "genes perturbed"),
        "drugs": (40.8, 18.4, "drugs on cells"),
        "pretraining": (61.2, 18.4, "many cells"),
        "protein": (81.6, 18.4, "sequences"),
    },
    {"model": (0, 100, "what users call: registration, files, training, results")},
    {
        "train": (0, 32, "step, order, trainer"),
        "checkpoint": (34, 32, "files, hub, published"),
        "pl": (68, 32, "plots"),
    },
    {
        "latent": (0, 32, "principal components"),
        "config": (34, 32, "sizes by name"),
        "tl": (68, 32, "tools"),
    },
    {
        "nn": (0, 49, "the paper, plain PyTorch"),
        "data": (51, 30, "genes, counts, batches"),
        "datasets": (83, 17, "public data"),
    },
]
COLOURS = [GREY, GREY, PURPLE, BLUE, ORANGE, ORANGE, GREEN]


def imports_of(folder: str) -> set[str]:
    """Return the other folders of the package that the files of one import."""
    files = [PACKAGE / f"{folder}.py", *(PACKAGE / folder).rglob("*.py")]
    found = set()
    for path in filter(Path.exists, files):
        within = path.relative_to(PACKAGE).parts[:-1]
        tree = ast.parse(path.read_text())
        for_types = {  # imported by type checkers only
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in for_types or not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = list(within[: len(within) - node.level + 1])
            module = base + (node.module.split(".") if node.module else [])
            found |= {module[0]} if module else {name.name for name in node.names}
    return found & {room for floor in FLOORS for room in floor} - {folder}


def check_map() -> None:
    """Raise unless every room imports only what is on the floors below it."""
    for i, floor in enumerate(FLOORS):
        below = {room for lower in FLOORS[i + 1 :] for room in lower}
        for room in floor:
            if wrong := imports_of(room) - below:
                raise ValueError(f"{room} imports {sorted(wrong)}, not below it.")


def code_map() -> None:
    """Rooms of the package on their floors."""
    check_map()
    canvas = Canvas(83)
    for i, (floor, colour) in enumerate(zip(FLOORS, COLOURS, strict=True)):
        for room, (x, width, body) in floor.items():
            canvas.box(x, 11 * i, width, 9, colour, room, body, mono=True)
    canvas.text(0, 79.5, "A room imports only rooms on floors below it.", align="left", size=SIZE)
    canvas.save(STATIC / "code_map")


if __name__ == "__main__":
    architecture()
    code_map()

"""What the drawn figures of the documentation share: boxes, arrows, text that must fit."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

# Okabe and Ito's colours, which the colour-blind tell apart: edge and light fill
BLUE = ("#0072B2", "#DCEBF5")
ORANGE = ("#C77700", "#FBEBCF")
GREEN = ("#00795A", "#D6EFE7")
PURPLE = ("#A8518A", "#F6E4EF")
GREY = ("#5F6B76", "#F1F3F5")
INK = "#1B2733"
WIDTH_INCHES = 7.0
SIZE = 12.0

mpl.rcParams |= {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}
mpl.rcParams |= {"svg.fonttype": "path", "svg.hashsalt": "scxtrimo"}

Colour = tuple[str, str]


class Canvas:
    """A page 100 units wide, on which y grows downwards.

    Parameters
    ----------
    height
        Height in the same units.
    """

    def __init__(self, height: float) -> None:
        self.figure = plt.figure(figsize=(WIDTH_INCHES, WIDTH_INCHES * height / 100))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(-0.7, 100.7), ylim=(height + 0.7, -0.7), aspect="equal")
        self.axes.axis("off")
        self.texts: list[tuple[Text, tuple[float, float, float, float]]] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: Colour,
        title: str = "",
        body: str = "",
        *,
        dashed: bool = False,
        mono: bool = False,
    ) -> None:
        """Draw a box with a bold title and text below it, both centred."""
        bottom = self.axes.get_ylim()[0]
        if x < 0 or x + width > 100 or y + height > bottom:
            raise ValueError(f"The box {title or body!r} does not fit on the page.")
        edge, fill = colour
        patch = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=1.2",
            edgecolor=edge,
            facecolor=fill,
            linewidth=1.3,
            linestyle=(0, (4, 2.5)) if dashed else "solid",
        )
        self.axes.add_patch(patch)
        lines = body.count("\n") + 1 if body else 0
        heights = ([3.1] if title else []) + [2.85] * lines
        top = y + (height - sum(heights)) / 2
        within = (x, y, width, height)
        if title:
            family = "DejaVu Sans Mono" if mono else None
            self.text(x + width / 2, top + 1.45, title, within, weight="bold", family=family)
            top += 3.3
        for line in body.split("\n") if body else []:
            self.text(x + width / 2, top + 1.4, line, within, size=SIZE - 1)
            top += 2.85

    def text(
        self,
        x: float,
        y: float,
        words: str,
        within: tuple[float, float, float, float] | None = None,
        *,
        size: float = SIZE,
        align: str = "center",
        **style: object,
    ) -> None:
        """Write one line, vertically centred at y, that must stay within a rectangle."""
        drawn = self.axes.text(
            x, y, words, size=size, ha=align, va="center_baseline", color=INK, zorder=5
        )
        drawn.set(**{name: value for name, value in style.items() if value is not None})
        bottom, top = self.axes.get_ylim()
        self.texts.append((drawn, within or (-0.7, top, 101.4, bottom - top)))

    def arrow(self, *points: tuple[float, float], colour: str = INK, width: float = 1.5) -> None:
        """Draw an arrow along straight lines through the points."""
        for start, end in zip(points[:-2], points[1:-1], strict=True):
            self.axes.plot(*zip(start, end, strict=True), color=colour, lw=width, zorder=1)
        arrow = FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>,head_length=5,head_width=2.8",
            color=colour,
            linewidth=width,
            shrinkA=0,
            shrinkB=0,
            zorder=1,
        )
        self.axes.add_patch(arrow)

    def save(self, path: Path, png_pixels: int = 0) -> None:
        """Write an SVG, and a PNG of this width beside it; text that sticks out is an error."""
        self.figure.canvas.draw()
        boxes = []
        for text, (x, y, width, height) in self.texts:
            box = text.get_window_extent().transformed(self.axes.transData.inverted())
            if (
                box.x0 < x + 0.3
                or box.x1 > x + width - 0.3
                or min(box.y0, box.y1) < y
                or max(box.y0, box.y1) > y + height
            ):
                raise ValueError(f"{text.get_text()!r} does not fit where it stands.")
            boxes.append((text, text.get_window_extent().padded(-1)))
        for i, (text, box) in enumerate(boxes):
            for other, other_box in boxes[:i]:
                if box.overlaps(other_box):
                    raise ValueError(f"{text.get_text()!r} is over {other.get_text()!r}.")
        metadata = {"Date": None, "Creator": None}
        self.figure.savefig(path.with_suffix(".svg"), facecolor="white", metadata=metadata)
        if png_pixels:
            self.figure.savefig(
                path.with_suffix(".png"),
                dpi=png_pixels / WIDTH_INCHES,
                facecolor="white",
                pil_kwargs={"optimize": True},
            )
        plt.close(self.figure)

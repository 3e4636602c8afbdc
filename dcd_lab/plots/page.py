"""The page every figure is drawn on: its size, type, colours, and the words on its axes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, SupportsFloat, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine

P = ParamSpec("P")
R = TypeVar("R")

WIDTH_IN = 7.2
DPI = 110
INK, GREY, FAINT = "#1A1A1A", "#6B6B6B", "#E4E4E4"

# Okabe and Ito, Color Universal Design, 2008. Sky blue and yellow come last: pale on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, BLACK, SKY, YELLOW = "#E69F00", "#000000", "#56B4E9", "#F0E442"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK, SKY, YELLOW)
# Colours of label 1, 2, 3, 4 on a grey image: bright ones, and far apart in lightness.
LABEL_COLORS = (VERMILLION, YELLOW, SKY, GREEN, PURPLE, ORANGE, BLUE)
MARKERS = "osD^vPXh"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))

# Any: matplotlib 3.11 spells out its settings in types, 3.9 does not.
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same page everywhere
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 11),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 10),
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), "white"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
}

UNITS = {"mm": "mm", "ml": "ml", "ms": "ms", "s": "s", "min": "min", "mib": "MiB", "gib": "GiB"}
WORDS = {
    "dice": "Dice (0–1)",
    "lesion_dice": "lesion-wise Dice (0–1)",
    "small_lesion_dice": "Dice of lesions below 1 ml (0–1)",
    "val_dice": "Dice on the val cases (0–1)",
    "one_channel_dice": "Dice of the best threshold on one channel (0–1)",
    "parameters_M": "parameters (millions)",
    "boundary_2mm_dice": "Dice within 2 mm of the border (0–1)",
    "lesion_dice_below_1ml": "Dice of lesions below 1 ml (0–1)",
    "lesion_dice_1_to_10ml": "1 to 10 ml (0–1)",
    "lesion_dice_above_10ml": "above 10 ml (0–1)",
    "lesion_f1": "lesion F1 (0–1)",
    "avd_ml": "difference of volumes (ml)",
    "lesion_count_diff": "difference of lesion counts",
    "loss": "loss (no unit)",
    "segmentation": "segmentation loss (no unit)",
    "distillation": "distillation loss (no unit)",
    "weight": "weight of the KD loss (no unit)",
    "gradient_norm": "gradient norm (no unit)",
    "learning_rate": "learning rate (no unit)",
    "step": "training step",
    "explained": "share explained (at most 1)",
    "seconds": "time (s)",
    "minutes": "time (min)",
    "hours": "time (h)",
    "n": "number of cases",
}


@contextmanager
def style() -> Iterator[None]:
    """This project's style on matplotlib's defaults; the reader's own settings come back after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


class Page(Figure):
    """A matplotlib Figure that a notebook shows by itself, without pyplot and its global state."""

    of_slices = False  # grey slices and contours in the label colours alone: a palette is enough

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with style():
            self.savefig(buffer, format="png")
        return _indexed(buffer) if self.of_slices else buffer.getvalue()


def _indexed(png: io.BytesIO) -> bytes:
    """The same picture in 48 greys and the label colours, pure and blended with grey."""
    from PIL import Image

    tones: list[tuple[int, ...]] = [(round(i * 255 / 47),) * 3 for i in range(48)]
    for name in LABEL_COLORS:
        color = [round(255 * part) for part in to_rgb(name)]
        tones.append(tuple(color))
        for grey in (0, 90, 180, 255):
            tones += [tuple(round(a * c + (1 - a) * grey) for c in color) for a in (0.66, 0.33)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for tone in tones for part in tone])
    small = io.BytesIO()
    whole = Image.open(png).convert("RGB")
    # Our own palette: one chosen by frequency drops the thin contours.
    indexed = whole.quantize(palette=palette, dither=Image.Dither.NONE)
    indexed.save(small, format="png", optimize=True)
    return small.getvalue()


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw with this project's style, whatever matplotlib's settings are, and leave those alone."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return draw(*args, **kwargs)

    return wrapper


def blank(
    height_in: float, title: str | None = None, note: str | None = None, *, of_slices: bool = False
) -> Page:
    """An empty page `height_in` inches high, with a title on top of that and a note below."""
    engine = ConstrainedLayoutEngine(w_pad=0.035, h_pad=0.05, wspace=0.0, hspace=0.0)
    height = height_in + (0.3 if title else 0)
    figure = Page(figsize=(WIDTH_IN, height), dpi=DPI, layout=engine)
    figure.of_slices = of_slices
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=9.5, color=GREY)
    return figure


def panels(figure: Page, count: int, columns: int, **options: Any) -> list[Axes]:
    """So many panels, row by row."""
    axes = figure.subplots(-(-count // columns), columns, squeeze=False, **options).ravel()
    for spare in axes[count:]:
        spare.remove()
    return list(axes[:count])


def picture(axes: Axes, values: np.ndarray, **options: Any) -> AxesImage:
    """An image whose first row lies at the bottom, without ticks or frame."""
    drawn = axes.imshow(values, origin="lower", **options)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return drawn


def outline(
    axes: Axes, mask: np.ndarray, edges: Sequence[float], color: str, **options: Any
) -> ContourSet:
    """The contour of a mask on an image with the edges (left, right, bottom, top)."""
    left, right, low, high = edges
    dx, dy = (right - left) / mask.shape[1], (high - low) / mask.shape[0]
    extent = (left - dx, right + dx, low - dy, high + dy)
    options = {"linewidths": 1.5, "origin": "lower", "extent": extent, **options}
    # A margin of zeros closes the contours of labels that touch the edge of the volume.
    return axes.contour(np.pad(mask, 1).astype(float), levels=[0.5], colors=[color], **options)


def color_bar(figure: Figure, drawn: AxesImage, axes: Any, label: str, **options: Any) -> None:
    """A bar that names the value of the colours with its unit."""
    bar = figure.colorbar(drawn, ax=axes, pad=0.02, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]


def colors(names: Iterable[object]) -> dict[str, str]:
    """A colour for every distinct name, in order of appearance; after eight they repeat."""
    distinct = dict.fromkeys(map(str, names))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(distinct)}


def marker(number: int) -> str:
    """The marker of the so many-th name, from 0."""
    return MARKERS[number % len(MARKERS)]


def axis_label(column: str) -> str:
    """The axis label of a table's column, with its unit: `hd95_mm` gives `HD95 (mm)`."""
    if column in WORDS:
        return WORDS[column]
    tolerance = re.fullmatch(r"(lesion_)?nsd_([\d.]+)mm", column)
    if tolerance:
        # 05 means 0.5: the names of columns leave the point after a leading 0 out.
        number = re.sub(r"^0(?=\d)", "0.", tolerance[2])
        return f"{'lesion-wise ' if tolerance[1] else ''}NSD at {number} mm (0–1)"
    words, _, unit = column.rpartition("_")
    if words and unit in UNITS:
        return f"{_words(words)} ({UNITS[unit]})"
    return _words(column)


def legend(
    figure: Figure, handles: Sequence[Any], *, columns: int, loc: Any = "outside lower left"
) -> None:
    """A legend of at most so many columns outside the axes."""
    figure.legend(handles=list(handles), loc=loc, ncols=min(len(handles), columns))


def labelled(axes: Axes, x: str, y: str) -> None:
    """Axes named after columns of a table, with lines to read values by."""
    axes.set(xlabel=axis_label(x), ylabel=axis_label(y))
    grid(axes)


def grid(axes: Axes, axis: str = "both") -> None:
    """Faint lines to read values by, along one axis or both."""
    axes.grid(visible=True, axis=axis)  # type: ignore[arg-type]
    axes.tick_params(length=0)


def named_marks(axes: Axes, marks: Mapping[str, SupportsFloat]) -> None:
    """Dotted vertical lines at values of x, each with its name beside its upper end."""
    for name, mark in marks.items():
        at = float(mark)
        axes.axvline(at, color=GREY, linestyle=":", linewidth=1.3)
        axes.annotate(
            name, (at, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0),
            textcoords="offset points", rotation=90, va="top", fontsize=9.5, color=GREY,
        )  # fmt: skip


def _words(name: str) -> str:
    text = name.replace("lesion_", "lesion-wise ").replace("_", " ")
    return re.sub(r"\b(hd95|kd|nsd|cpu|gpu)\b", lambda word: word[0].upper(), text)

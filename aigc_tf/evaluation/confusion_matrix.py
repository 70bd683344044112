"""The picture of a confusion matrix.

NumPy and Matplotlib only.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

_WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Arial Unicode MS")
_MAX_NAME = 28  # characters of a class name on an axis
_MAX_NUMBERED = 30  # classes up to which each cell shows its count
_MAX_TICKS = 60  # names on an axis


def plot_confusion_matrix(matrix: np.ndarray | Sequence[Sequence[int]], label_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix: colours are shares of the rows (the true classes), numbers are counts.

    A name with characters that no installed font has becomes its class number (`#3`); a long name loses its middle.
    Above 30 classes cells have no numbers, above 60 only some ticks have names.

    Args:
        matrix: `(C, C)` int, rows are the true classes.
        label_names: C names.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        ValueError: If the matrix is not `(C, C)` with C at least 1.
    """
    counts = np.asarray(matrix)
    num_classes = len(label_names)
    if counts.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(
            f"matrix must be (C, C) with one name per class, received {counts.shape} and {num_classes} names."
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.42 * num_classes, 3.0), 18.0)  # inches of the square of cells
    figure = Figure(figsize=(side + 3.2, side + 2.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    _name_ticks(axes, label_names, points=72 * side)
    if num_classes <= _MAX_NUMBERED:
        _number_cells(axes, counts, shares, points=72 * side / num_classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    figure.colorbar(image, ax=axes, label="share of the truth", shrink=0.8)
    with warnings.catch_warnings():
        # Matplotlib warns of names that are too long for the layout, and draws them all the same.
        warnings.filterwarnings("ignore", category=UserWarning)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _font_families() -> list[str]:
    """Returns the fonts to try for each character; a font that is not installed would fill the log with warnings."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(family for family in _WIDE_FONTS if family in installed)]


def _name_ticks(axes: Any, label_names: Sequence[str], *, points: float) -> None:
    """Names both axes, which have a length of about `points`."""
    families = _font_families()
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    shown = [_drawable_name(name, index, fonts) for index, name in enumerate(label_names)]
    ticks = list(range(0, len(shown), math.ceil(len(shown) / _MAX_TICKS)))
    # Without parse_math a dollar sign in a class name would start a formula.
    style = {"fontfamily": families, "fontsize": min(points / len(ticks) * 0.5, 10.0), "parse_math": False}
    axes.set_xticks(ticks, [shown[tick] for tick in ticks], rotation=90, **style)
    axes.set_yticks(ticks, [shown[tick] for tick in ticks], **style)


def _number_cells(axes: Any, counts: np.ndarray, shares: np.ndarray, *, points: float) -> None:
    """Writes each count into its cell, `points` wide; numbers too wide for it are shortened (12k)."""
    size = min(points * 0.28, 12.0)
    fitting = int(points * 0.9 / (size * 0.64))  # a digit is 0.64 of the font size wide
    for row, column in np.ndindex(counts.shape):
        text = str(counts[row, column])
        text = text if len(text) <= fitting else _short_count(int(counts[row, column]))
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _drawable_name(name: str, index: int, fonts: Sequence[FT2Font]) -> str:
    name = " ".join(name.split())  # a line break would move the axis
    if not name or any(not any(font.get_char_index(ord(character)) for font in fonts) for character in name):
        return f"#{index}"
    if len(name) <= _MAX_NAME:
        return name
    half = _MAX_NAME // 2
    return f"{name[:half]}…{name[-(half - 1) :]}"


def _short_count(count: int) -> str:
    """At most five characters, rounded down: 999, 12k, 3M, 1e+09."""
    for limit, divisor, unit in ((1_000, 1, ""), (10**6, 1_000, "k"), (10**9, 10**6, "M")):
        if count < limit:
            return f"{count // divisor}{unit}"
    return f"{count:.0e}"

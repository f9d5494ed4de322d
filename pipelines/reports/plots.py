"""Small plots for the pages, as PNG data URIs.

They hold no clock and no stamp of the software: equal data gives equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pipelines.reports.drawing import data_uri

PAIR = ("#1f4fd8", "#d9480f")
"""Colours of the first and the second of two things compared, also on images."""
_COLOURS = (*PAIR, "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d", "#5c940d", "#495057")


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    logarithmic: bool = False,
) -> str:
    """Draw one line for each series.

    Args:
        series: Points (x, y) of each line, by its name in the legend.
        x: Label of the x axis.
        y: Label of the y axis, which starts at 0.
        logarithmic: Whether the x axis is logarithmic.

    Returns:
        The plot as a data URI.
    """
    figure, axes = _axes()
    for index, (name, points) in enumerate(series.items()):
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        marker = "o" if len(points) == 1 else ""  # a line of one point would not be seen
        axes.plot(
            xs, ys, label=name, color=_COLOURS[index % len(_COLOURS)], linewidth=1.4, marker=marker
        )
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure_uri(figure)


def neighbours(points: Sequence[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """Return at most so many points, each the mean of as many neighbours, give or take one."""
    if len(points) <= most:
        return list(points)
    groups = np.array_split(np.asarray(points, dtype=np.float64), most)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def histogram(
    counts: ArrayLike, edges: ArrayLike, *, x: str, y: str, logarithmic: bool = False
) -> str:
    """Draw a histogram; empty bins at both ends are cut off.

    Args:
        counts: Number[N] of things in each bin.
        edges: Number[N + 1]: the bins' edges.
        x: Label of the x axis.
        y: Label of the y axis.
        logarithmic: Whether the x axis is logarithmic, to base 2.

    Returns:
        The plot as a data URI.
    """
    counts, edges = np.asarray(counts), np.asarray(edges)
    filled = np.flatnonzero(counts) if counts.any() else np.array([0])
    figure, axes = _axes()
    axes.stairs(
        counts[filled[0] : filled[-1] + 1],
        edges[filled[0] : filled[-1] + 2],
        fill=True,
        color=_COLOURS[0],
    )
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure_uri(figure)


def reliability(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, x: str, y: str
) -> str:
    """Draw the reliability of scores: share of hits by mean score, beside the diagonal.

    Args:
        series: For each name in the legend three arrays over the bins: mean score in 0..1, share of
            hits in 0..1, and number of boxes. The area of a dot grows with its number; empty bins
            are left out.
        x: Label of the x axis.
        y: Label of the y axis.

    Returns:
        The plot as a data URI.
    """
    figure, axes = _axes()
    axes.plot((0, 1), (0, 1), color="#9ca3af", linewidth=1, linestyle="--")
    for index, (name, (scores, shares, counts)) in enumerate(series.items()):
        filled = np.asarray(counts) > 0
        xs, ys, weights = (np.asarray(values)[filled] for values in (scores, shares, counts))
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(xs, ys, label=name, color=colour, linewidth=1.2)
        axes.scatter(
            xs,
            ys,
            s=6 + 120 * weights / max(1, weights.sum()),
            color=colour,
            alpha=0.75,
            linewidths=0,
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.05)
    axes.legend(frameon=False, fontsize=8)
    return figure_uri(figure)


def figure_uri(figure: Figure) -> str:
    """Return a matplotlib figure as a PNG data URI."""
    sink = io.BytesIO()
    # Matplotlib would write its version into the file.
    figure.savefig(sink, format="png", dpi=140, metadata={"Software": None})
    return data_uri(sink.getvalue(), "image/png")


def _axes() -> tuple[Figure, Axes]:
    """Return an empty plot in the style of the pages."""
    # Figure itself, not pyplot: that keeps every figure in a global list and may open a window.
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes

"""Small plots for the pages, as PNG data URIs. No clock and no software stamp: equal data, equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pipelines.pictures import data_uri

_COLOURS = ("#1f4fd8", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d", "#5c940d", "#495057")


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """Draw one line for each named series of (x, y) points."""
    figure, axes = _axes()
    for index, (name, points) in enumerate(series.items()):
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        axes.plot(xs, ys, label=name, color=_COLOURS[index % len(_COLOURS)], linewidth=1.4)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure_uri(figure)


def histogram(counts: ArrayLike, edges: ArrayLike, *, x: str, y: str, logarithmic: bool = False) -> str:
    """Draw counts between edges, one more edge than counts; empty bins at both ends are cut off."""
    counts, edges = np.asarray(counts), np.asarray(edges)
    filled = np.flatnonzero(counts) if counts.any() else np.array([0])
    figure, axes = _axes()
    axes.stairs(
        counts[filled[0] : filled[-1] + 1], edges[filled[0] : filled[-1] + 2], fill=True, color=_COLOURS[0]
    )
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure_uri(figure)


def figure_uri(figure: Figure) -> str:
    """Return a figure as a PNG data URI."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=140, metadata={"Software": None})
    return data_uri(sink.getvalue(), "image/png")


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes

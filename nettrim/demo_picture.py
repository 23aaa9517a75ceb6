"""The demonstration's picture: weights before and after, and the trade-off (see nettrim/demo.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim.solution import Solution

__all__ = ["draw"]

#: hidden units of the first layer that the picture shows
SHOWN_UNITS = (8, 9)
#: Okabe and Ito's colours, which stay apart for colour-blind readers
_BLUE, _ORANGE, _GREEN, _INK, _FAINT = "#0072B2", "#D55E00", "#009E73", "#222222", "#B8BEC4"


def draw(
    matplotlib: Any,
    network: Any,
    solutions: Sequence[Solution],
    trade_off: Sequence[dict[str, Any]],
    epsilon: float,
    dense_accuracy: float,
) -> Any:
    """Left: both hidden layers before and after. Right: weights kept and test accuracy against epsilon."""
    style = {
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.labelsize": 8,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    # a Figure of its own: the caller's plots and backend are left alone
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 4.7), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05))
        grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 0.04, 1.2))
        _draw_weights(figure, grid, network, solutions)
        kept = figure.add_subplot(grid[0, 3])
        reached = figure.add_subplot(grid[1, 3], sharex=kept)
        _draw_trade_off(kept, reached, trade_off, epsilon, dense_accuracy)
    return figure


def _draw_weights(figure: Any, grid: Any, network: Any, solutions: Sequence[Solution]) -> None:
    for row, solution in enumerate(solutions[:2]):
        before, after = network.weights[row], solution.W[:-1]
        limit = float(np.quantile(np.abs(before), 0.99))
        kept = np.count_nonzero(after) / after.size
        titles = (
            f"Hidden layer {row + 1}: {before.shape[0]} \N{MULTIPLICATION SIGN} {before.shape[1]}",
            f"Pruned: {100 * kept:.0f} % kept",
        )
        for column, (weights, title) in enumerate(zip((before, after), titles, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            picture = _tiles(weights) if row == 0 else np.where(weights == 0, np.nan, weights)
            colours = _colours()
            image = axes.imshow(picture, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
            if row == 0:
                axes.set_aspect("equal")
                axes.set_xlabel(f"{SHOWN_UNITS[0] * SHOWN_UNITS[1]} neurons, 8 \N{MULTIPLICATION SIGN} 8 inputs each")
            else:
                axes.set_xlabel("neuron")
                axes.set_ylabel("input" if column == 0 else "")
            axes.set_title(title, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[["top", "right"]].set_visible(True)
        bar = figure.colorbar(image, cax=figure.add_subplot(grid[row, 2]), label="weight (white: 0)")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=7)


def _colours() -> Any:
    """Blue - light grey - orange-red, with white kept for exact zeros."""
    from matplotlib.colors import LinearSegmentedColormap

    made = LinearSegmentedColormap.from_list("signed", ["#053061", _BLUE, "#dfe3e6", _ORANGE, "#67200a"])
    return made.with_extremes(bad="white")


def _tiles(weights: np.ndarray) -> np.ndarray:
    """The first neurons' 8 x 8 input weights side by side, NaN where they are zero and between them."""
    rows, columns = SHOWN_UNITS
    canvas = np.full((rows * 9 + 1, columns * 9 + 1), np.nan)
    for unit in range(rows * columns):
        y, x = 9 * (unit // columns) + 1, 9 * (unit % columns) + 1
        tile = weights[:, unit].reshape(8, 8)
        canvas[y : y + 8, x : x + 8] = np.where(tile == 0, np.nan, tile)
    return canvas


def _draw_trade_off(
    kept: Any, reached: Any, trade_off: Sequence[dict[str, Any]], epsilon: float, dense_accuracy: float
) -> None:
    from matplotlib.ticker import NullLocator

    x = [100 * point["epsilon"] for point in trade_off]
    for i, (colour, marker) in enumerate(zip((_BLUE, _ORANGE), ("o", "s"), strict=True)):
        y = [100 * point["kept"][i] for point in trade_off]
        kept.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.4)
        kept.annotate(f"hidden layer {i + 1}", (x[0], y[0]), (6, 4), textcoords="offset points", color=colour)
    kept.set_ylim(0, 100)
    kept.set_ylabel("weights kept (%)")
    kept.set_title("Trade-off", loc="left")
    kept.tick_params(labelbottom=False)
    y = [100 * point["accuracy"] for point in trade_off]
    reached.axhline(100 * dense_accuracy, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    reached.annotate(
        f"dense: {100 * dense_accuracy:.1f} %",
        (x[-1], 100 * dense_accuracy),
        (0, 4),
        textcoords="offset points",
        ha="right",
    )
    reached.plot(x, y, color=_GREEN, marker="D", markersize=3.5, linewidth=1.4)
    reached.annotate(
        "pruned", (x[-1], y[-1]), (-7, 0), textcoords="offset points", color=_GREEN, ha="right", va="center"
    )
    low, high = min([*y, 100 * dense_accuracy]), max([*y, 100 * dense_accuracy])
    reached.set_ylim(low - 0.15 * (high - low) - 0.3, high + 0.25 * (high - low) + 0.3)
    reached.set_ylabel("test accuracy (%)")
    reached.set_xscale("log")
    reached.set_xlabel("epsilon: error allowed in each layer (%)")
    reached.set_xticks(x, [f"{value:g}" for value in x])
    reached.xaxis.set_minor_locator(NullLocator())
    for axes in (kept, reached):
        axes.axvline(100 * epsilon, color=_FAINT, linewidth=5, alpha=0.5, zorder=0)
        axes.grid(axis="y", color=_FAINT, linewidth=0.4, alpha=0.6)

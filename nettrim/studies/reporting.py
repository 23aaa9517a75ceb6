"""What the tables and figures of several studies share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nettrim.studies.records import interval

__all__ = ["COLOURS", "Rows", "clip_percent", "draw", "grouped", "mean", "percent"]

#: Okabe and Ito's
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Rows = list[dict[str, Any]]


def mean(values: Iterable[float], digits: int = 3, scale: float = 1.0) -> str:
    """Mean and half the 95 % interval (Student's t), as text; one value alone without; nothing for none."""
    found = [scale * value for value in values]
    if not found:
        return ""
    middle, half = interval(found)
    return f"{middle:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def grouped(rows: Rows, *names: str) -> dict[tuple[Any, ...], Rows]:
    """Rows by their fields of these names and their recipe, which is never mixed; in the order of the rows."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in (*names, "recipe")), []).append(row)
    return groups


def percent(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval in percent, as error bars have them: of one value alone the half is 0."""
    middle, half = interval([100 * value for value in values])
    return middle, 0.0 if math.isnan(half) else half


def clip_percent(panels: Iterable[Any]) -> None:
    """Let the axes of accuracies end at 0 and 100 %, where their intervals reach further."""
    for panel in panels:
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, 0), min(high, 101))


def draw(
    path: Path,
    panels: int,
    fill: Callable[[list[Any]], object],
    rows: int = 1,
    size: tuple[float, float] = (4.6, 3.4),
) -> Path:
    """A figure with panels beside each other, filled and written; the caller's plots and backend are left alone.

    Parameters
    ----------
    path : Path
        Of a PNG file.
    panels : int
        In each row.
    fill : callable
        Draws into the list of all panels, row by row.
    rows : int
    size : (float, float)
        Of a panel, in inches.

    Returns
    -------
    Path
        The file.
    """
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(size[0] * panels, size[1] * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, panels, squeeze=False).flat)
    fill(axes)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e6e9ec")
    handles = {label: h for panel in axes for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        # long names in fewer columns: a letter is about .08 inches, a line and the space around it .6
        fitting = int(size[0] * panels / (0.08 * max(map(len, handles)) + 0.6))
        columns = max(1, min(4, 2 * panels, fitting))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=110)
    return path

"""Tables and figures of the study of phases, from its records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from nettrim.studies.records import Records
from nettrim.studies.reporting import COLOURS, Rows, draw, grouped, mean

__all__ = ["plot", "tables"]

_NAMES = ("SGD", "DP-SGD")
_ORDERS = [(first, second) for first in _NAMES for second in _NAMES]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {
        "Two phases: test accuracy at the end, %": _ends(records.rows, "accuracy", 2, 100),
        "Two phases: training loss at the end": _ends(records.rows, "loss", 3, 1),
        "Two phases: privacy": _privacy(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _ends(rows: Rows, name: str, digits: int, scale: float) -> list[dict[str, str]]:
    """A row for each k; a process that goes on is the same training for every k, looked at after k epochs too."""
    made = []
    for found in grouped(rows).values():
        alone = {first: [row for row in found if row["k"] is None and row["first"] == first] for first in _NAMES}
        for k in sorted({row["k"] for row in found if row["k"] is not None}):
            cells = {"k": f"{k} of {found[0]['epochs']}"}
            for first in _NAMES:
                early = [point[name] for row in alone[first] for point in row["curve"] if point["epoch"] == k]
                cells[f"{first} after k"] = mean(early, digits, scale)
            for first, second in _ORDERS:
                ends = [row for row in found if (row["first"], row["second"], row["k"]) == (first, second, k)]
                ends = alone[first] if first == second else ends
                cells[f"{first} -> {second}"] = mean([row["end"][name] for row in ends], digits, scale)
            made.append(cells)
    return made


def _privacy(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (first, second, _), found in grouped(rows, "first", "second").items():
        said = found[0]["privacy"] or "none: a phase of SGD"
        made.append({"phases": f"{first} -> {second}", "privacy": said})
    return made


def plot(records: Records, folder: Path) -> list[Path]:
    """Loss and accuracy by epoch, of the first seed, a figure for each k; PNG files in a folder."""
    paths = []
    for (recipe,), rows in grouped(records.rows).items():
        seed = min(row["seed"] for row in rows)
        own = [row for row in rows if row["seed"] == seed]
        for k in sorted({row["k"] for row in own if row["k"] is not None}):
            paths.append(draw(folder / f"dp_phases_{recipe}_{k}.png", 2, partial(_fill, rows=own, k=k)))
    return paths


def _fill(axes: list[Any], rows: Rows, k: int) -> None:
    for colour, (first, second) in zip(COLOURS, _ORDERS, strict=False):
        found = [r for r in rows if (r["first"], r["second"]) == (first, second) and r["k"] in (None, k)]
        for row in found:
            epochs = [point["epoch"] for point in row["curve"]]
            for panel, name in zip(axes, ("loss", "accuracy"), strict=True):
                panel.plot(epochs, [p[name] for p in row["curve"]], color=colour, label=f"{first} -> {second}")
    for panel, name in zip(axes, ("training loss", "test accuracy"), strict=True):
        panel.axvline(k, color="black", lw=0.8, ls=":")
        panel.set(xlabel="epoch", ylabel=name)
    axes[0].set_yscale("log")

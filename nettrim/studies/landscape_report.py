"""Tables and figures of the study of the landscape, from its records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.studies.records import Records
from nettrim.studies.reporting import COLOURS, Rows, draw, grouped, mean

__all__ = ["plot", "tables"]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {
        "Instability of copies that part after k epochs": _lines(records.rows),
        "Random directions and norms": _around(records.rows),
        "Clipping: the ratio R, the bounds and the measured cosine": _clipping(records.rows),
        "Gradient flow on a signal and on noise": _signal(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _of(rows: Rows, part: str) -> Rows:
    return [row for row in rows if row["part"] == part]


def _lines(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (first, k, _), found in sorted(grouped(_of(rows, "line"), "first", "k").items()):
        cells = {"first phase": first, "k": f"{k}"}
        for (pair, _), own in grouped(found, "pair").items():
            cells[pair] = mean([row["instability"] for row in own])
            cells[f"{pair}: distance"] = mean([row["distance"] for row in own], 2)
        made.append(cells)
    return made


def _around(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (name, _), found in grouped(_of(rows, "around"), "pair").items():
        cells = {"network": name, "test accuracy, %": mean([row["accuracy"] for row in found], 2, 100)}
        cells |= {"norm": mean([row["norm"] for row in found], 2), "moved": mean([row["moved"] for row in found], 2)}
        for j, radius in enumerate(found[0]["radii"]):
            cells[f"loss at {radius:g}"] = mean([float(np.mean(row["losses"], 0)[j]) for row in found])
        cells["largest cosine of two"] = mean([row["direction_cosine"] for row in found], 4)
        made.append(cells)
    return made


def _clipping(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (name, _), found in grouped(_of(rows, "around"), "pair").items():
        for j, first in enumerate(found[0]["clipping"]):
            cells = {"network": name, "examples": f"{first['count']}"}
            for key, title, digits in (
                ("R", "R", 1),
                ("cosine", "measured cosine", 3),
                ("projection", "projection", 4),
                ("bound", "bound, any C", 4),
                ("printed", "as printed", 2),
                ("clipped", "clipped", 3),
            ):
                cells[title] = mean([row["clipping"][j][key] for row in found], digits)
            made.append(cells)
    return made


def _signal(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (name, _), found in grouped(_of(rows, "signal"), "pair").items():
        largest = max(row["noise"] for row in found)
        left = f"at most {largest:.1g}" if largest < 1e-6 else mean([row["noise"] for row in found])
        made.append(
            {
                "start": name,
                "norm of Wn at the end": left,
                "R": mean([row["R"] for row in found], 2),
                "R, noise pruned": mean([row["R_pruned"] for row in found], 2),
            }
        )
    return made


def plot(records: Records, folder: Path) -> list[Path]:
    """Losses on the lines and along random directions, of the first seed; PNG files in a folder."""
    paths = []
    for (recipe,), rows in grouped(records.rows).items():
        seed = min(row["seed"] for row in rows)
        own = [row for row in rows if row["seed"] == seed]
        paths.append(draw(folder / f"landscape_{recipe}.png", 2, partial(_fill, rows=own)))
    return paths


def _fill(axes: list[Any], rows: Rows) -> None:
    lines = grouped(_of(rows, "line"), "pair")
    for colour, ((pair, _), found) in zip(COLOURS, lines.items(), strict=False):
        for row, style in zip(found, ("-", "--", ":", "-.") * len(found), strict=False):
            alphas = np.linspace(0, 1, len(row["losses"]))
            axes[0].plot(alphas, row["losses"], style, color=colour, label=pair if style == "-" else None)
    for colour, row in zip(COLOURS, _of(rows, "around"), strict=False):
        losses = np.array(row["losses"])
        axes[1].plot(row["radii"], losses.mean(0), "o-", color=colour, label=f"around {row['pair']}")
        axes[1].fill_between(row["radii"], losses.min(0), losses.max(0), color=colour, alpha=0.2)
    axes[0].set(xlabel="from one network to the other", ylabel="training loss")
    axes[1].set(xlabel="distance in random directions", ylabel="training loss")
    axes[1].set_yscale("log")

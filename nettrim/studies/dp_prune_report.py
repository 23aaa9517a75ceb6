"""Tables and figures of the study of pruning before DP-SGD, from its records."""

from __future__ import annotations

from collections.abc import Callable
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
        "Pruning before DP-SGD, by the fraction of weights KEPT": _accuracies(records.rows),
        "Pruning before DP-SGD: privacy": _privacy(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _name(row: dict[str, Any]) -> str:
    return f"{row['share']:.0%} of the data" if row["source"] == "share" else row["source"]


def _accuracies(rows: Rows) -> list[dict[str, str]]:
    dense = {(row["seed"], row["recipe"]): row["end"]["accuracy"] for row in rows if row["source"] == "none"}
    made = []
    for (_, kept, _), found in sorted(grouped(rows, "source", "kept").items(), key=lambda pair: (-pair[0][1], pair[0])):
        paired = [r["end"]["accuracy"] - dense[key] for r in found if (key := (r["seed"], r["recipe"])) in dense]
        made.append(
            {
                "mask from": _name(found[0]),
                "kept, %": f"{100 * kept:g}",
                "test accuracy, %": mean([row["end"]["accuracy"] for row in found], 2, 100),
                "- dense": mean(paired, 2, 100) if kept < 1 else "",
                "R at the start": mean([row["R"] for row in found], 2),
                "cosine": mean([row["cosine"] for row in found], 3),
                "clipped, %": mean([row["clipped"] for row in found], 1, 100),
            }
        )
    return made


def _privacy(rows: Rows) -> list[dict[str, str]]:
    made: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        made.setdefault((_name(row), row["recipe"]), {"mask from": _name(row), "privacy": row["privacy"]})
    return list(made.values())


def plot(records: Records, folder: Path) -> list[Path]:
    """Accuracy and cosine against the fraction kept; a PNG file in a folder."""
    return [
        draw(folder / f"dp_prune_{recipe}.png", 2, partial(_fill, rows=found))
        for (recipe,), found in grouped(records.rows).items()
    ]


def _fill(axes: list[Any], rows: Rows) -> None:
    of: tuple[Callable[[dict[str, Any]], float], ...] = (lambda row: row["end"]["accuracy"], lambda row: row["cosine"])
    titles = ("test accuracy", "cosine of the clipped mean, at the start")
    for panel, (value, title) in zip(axes, zip(of, titles, strict=True), strict=True):
        dense = [value(row) for row in rows if row["source"] == "none"]
        if dense:
            panel.axhline(np.mean(dense), color="black", lw=0.8, ls=":", label="dense")
        pruned = grouped([row for row in rows if row["source"] != "none"], "source")
        for colour, found in zip(COLOURS, pruned.values(), strict=False):
            kept = sorted({row["kept"] for row in found})
            values = [np.mean([value(row) for row in found if row["kept"] == k]) for k in kept]
            panel.plot(kept, values, "o-", color=colour, label=f"mask from {_name(found[0])}")
        panel.set(xscale="log", xlabel="fraction of weights kept", ylabel=title)

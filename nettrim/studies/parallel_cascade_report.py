"""Tables and figures of the study of the two schemes, from its records."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.studies.records import Records, interval
from nettrim.studies.reporting import COLOURS, Rows, clip_percent, draw, grouped, mean

__all__ = ["plot", "tables"]

SCHEMES = ("parallel", "cascade")


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds, of each of which subsets are averaged."""
    made = {
        "Parallel and cascade: the network": _network(records.rows),
        "Parallel and cascade: discrepancy at the same zeros, by interpolation": _matched(records.rows),
        "Parallel and cascade: zeros of each layer on the most samples, %": _layers(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _per_seed(rows: Rows, value: Callable[[dict[str, Any]], float]) -> list[float]:
    """For each seed, the mean over its subsets."""
    seeds = sorted({row["seed"] for row in rows})
    return [float(np.mean([value(row) for row in rows if row["seed"] == seed])) for seed in seeds]


def _groups(rows: Rows) -> list[tuple[tuple[Any, ...], Rows]]:
    """By samples, epsilon and scheme, in this order, and recipe."""
    groups = grouped(rows, "samples", "epsilon", "scheme")
    return sorted(groups.items(), key=lambda item: (item[0][0], item[0][1], SCHEMES.index(item[0][2]), item[0][3]))


def _network(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (samples, epsilon, scheme, _), found in _groups(rows):
        ends = [status for row in found for status in row["statuses"]]
        made.append(
            {
                "samples": f"{samples}",
                "scheme": scheme,
                "epsilon": f"{epsilon:g}",
                "runs": f"{len(found)}",
                "zeros, %": mean(_per_seed(found, lambda row: row["zeros"]), 1, 100),
                "discrepancy": mean(_per_seed(found, lambda row: row["discrepancy"]["calibration"]), 3),
                "on validation samples": mean(_per_seed(found, lambda row: row["discrepancy"]["validation"]), 3),
                "test accuracy, %": mean(_per_seed(found, lambda row: row["accuracy"]), 2, 100),
                "dense": mean(_per_seed(found, lambda row: row["dense"]), 2, 100),
                "programs solved": f"{ends.count('solved')} of {len(ends)}",
            }
        )
    return made


def _matched(rows: Rows) -> list[dict[str, str]]:
    """Both schemes at the zeros of the parallel one, as far as the cascade's range reaches."""
    made = []
    for (samples, _), found in sorted(grouped(rows, "samples").items()):
        for epsilon in sorted({row["epsilon"] for row in found if row["scheme"] == "parallel"}):
            pairs = [pair for seed in sorted({row["seed"] for row in found}) for pair in _pair(found, epsilon, seed)]
            if not pairs:
                continue
            zeros, parallel, cascade, ours, theirs = (list(column) for column in zip(*pairs, strict=True))
            made.append(
                {
                    "samples": f"{samples}",
                    "zeros, %": mean(zeros, 1, 100),
                    "discrepancy, parallel": mean(parallel, 3),
                    "discrepancy, cascade": mean(cascade, 3),
                    "accuracy, parallel, %": mean(ours, 2, 100),
                    "accuracy, cascade, %": mean(theirs, 2, 100),
                }
            )
    return made


def _pair(rows: Rows, epsilon: float, seed: int) -> list[tuple[float, ...]]:
    """Zeros of a seed's parallel run; discrepancies and accuracies of both schemes there. Empty outside the range."""
    own = [row for row in rows if row["seed"] == seed and row["subset"] == 0]
    at = [row for row in own if row["scheme"] == "parallel" and row["epsilon"] == epsilon]
    curve = sorted(
        (row["zeros"], row["discrepancy"]["validation"], row["accuracy"]) for row in own if row["scheme"] == "cascade"
    )
    if not at or len(curve) < 2 or not curve[0][0] <= at[0]["zeros"] <= curve[-1][0]:
        return []
    zeros, distances, accuracies = zip(*curve, strict=True)
    there = at[0]["zeros"]
    found = (float(np.interp(there, zeros, values)) for values in (distances, accuracies))
    distance, accuracy = found
    return [(there, at[0]["discrepancy"]["validation"], distance, at[0]["accuracy"], accuracy)]


def _layers(rows: Rows) -> list[dict[str, str]]:
    made = []
    most = max((row["samples"] for row in rows), default=0)
    for (samples, epsilon, scheme, _), found in _groups(rows):
        if samples == most:
            cells = {"samples": f"{samples}", "scheme": scheme, "epsilon": f"{epsilon:g}"}
            for k, name in enumerate(found[0]["layers"]):
                own = [{"seed": row["seed"], "zeros": row["layers"][name]} for row in found]
                cells[f"layer {k + 1}"] = mean(_per_seed(own, lambda row: row["zeros"]), 1, 100)
            made.append(cells)
    return made


def plot(records: Records, folder: Path) -> list[Path]:
    """Discrepancy and accuracy against zeros, a column for each scheme; a PNG file in a folder."""
    if not records.rows:
        return []
    recipe = records.rows[-1]["recipe"]
    rows = [row for row in records.rows if row["recipe"] == recipe]

    def fill(axes: list[Any]) -> None:
        for k, panel in enumerate(axes):
            scheme = SCHEMES[k % 2]
            for colour, samples in zip(COLOURS, sorted({row["samples"] for row in rows}), strict=False):
                own = [row for row in rows if (row["scheme"], row["samples"]) == (scheme, samples)]
                points = [_point([row for row in own if row["epsilon"] == e], k // 2) for e in _epsilons(own)]
                if points:
                    x, y, half = zip(*sorted(points), strict=True)
                    panel.errorbar(
                        x, y, half, fmt="-", marker="o", ms=3, lw=1.4, color=colour, label=f"{samples} samples"
                    )
            panel.set(title=scheme, xlabel="zeros, %")
            if k < 2:
                panel.set(ylabel="relative total discrepancy", ylim=(0, None))
            else:
                panel.axhline(100 * np.mean([row["dense"] for row in rows]), color="black", lw=0.8, ls=":")
                panel.set_ylabel("test accuracy, %")
        clip_percent(axes[2:])
        for pair in (axes[:2], axes[2:]):
            low, high = (f(panel.get_ylim()[i] for panel in pair) for i, f in enumerate((min, max)))
            for panel in pair:
                panel.set_ylim(low, high)

    return [draw(folder / "parallel_cascade.png", 2, fill, rows=2)]


def _epsilons(rows: Rows) -> list[float]:
    return sorted({row["epsilon"] for row in rows})


def _point(rows: Rows, what: int) -> tuple[float, float, float]:
    """Zeros in percent, and the discrepancy on validation samples or the accuracy, with half its interval."""
    zeros = 100 * float(np.mean(_per_seed(rows, lambda row: row["zeros"])))
    values = _per_seed(rows, lambda row: 100 * row["accuracy"] if what else row["discrepancy"]["validation"])
    middle, half = interval(values)
    return zeros, middle, 0.0 if math.isnan(half) else half

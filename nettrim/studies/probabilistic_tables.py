"""The tables of the study of probabilistic bounds, from its records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nettrim.bounds import laws
from nettrim.studies.records import Records, interval

__all__ = ["grouped", "tables"]

#: the exponent of the width in each law, over alpha
EXPONENTS = {"magnitude": -3, "random": -1}

Rows = list[dict[str, Any]]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds, or over widths and seeds for slopes."""
    made = {
        "Independent uniform layers": _layers(records.rows),
        "Networks of independent uniform layers": _networks(records.rows),
        "Middle layers of 784-d-d-10: slopes": _slopes(records.rows),
        "Middle layers of 784-d-d-10: errors over what is predicted": _ratios(records.rows),
        "Middle layers of 784-d-d-10: how far from independent uniform weights": _assumption(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def grouped(rows: Rows, parts: Iterable[str], *names: str) -> dict[tuple[Any, ...], Rows]:
    """The records of some parts by their fields of these names and their recipe, which is never mixed; in order."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        if row["part"] in parts:
            groups.setdefault(tuple(row[name] for name in (*names, "recipe")), []).append(row)
    return dict(sorted(groups.items()))


def _layers(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (mask, alpha, _), found in grouped(rows, ["layer"], "mask", "alpha").items():
        widest = [row for row in found if row["width"] == max(row["width"] for row in found)]
        made.append(
            {
                "mask": mask,
                "alpha": f"{alpha:g}",
                "law's slope": f"{EXPONENTS[mask] * alpha:.2f}",
                "slope": _slope(found, "error"),
                "widest": f"{widest[0]['width']}",
                "pruned, %": f"{100 * widest[0]['pruned']:.3g}",
                "error": _mean([row["error"] for row in widest]),
                "error / law": _mean([row["error"] / row["law"] for row in widest]),
            }
        )
    return made


def _networks(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (depth, mask, alpha, _), found in grouped(rows, ["network"], "depth", "mask", "alpha").items():
        widest = [row for row in found if row["width"] == max(row["width"] for row in found)]
        made.append(
            {
                "layers": f"{depth}",
                "mask": mask,
                "alpha": f"{alpha:g}",
                "one layer's slope": f"{EXPONENTS[mask] * alpha:.2f}",
                "slope, lower": _slope(found, "lower"),
                "slope, upper": _slope(found, "upper"),
                "widest": f"{widest[0]['width']}",
                "lower": _mean([row["lower"] for row in widest]),
                "upper": _mean([row["upper"] for row in widest]),
                "upper / lower": _mean([row["upper"] / row["lower"] for row in widest]),
            }
        )
    return made


def _slopes(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (mask, alpha, _), found in grouped(rows, ["initial", "trained"], "mask", "alpha").items():
        cells = {"mask": mask, "alpha": f"{alpha:g}", "law's slope": f"{EXPONENTS[mask] * alpha:.2f}"}
        for part in ("initial", "trained"):
            cells[part] = _slope([row for row in found if row["part"] == part], "error")
        made.append(cells)
    return made


def _ratios(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (width, mask, alpha, _), found in grouped(rows, ["initial", "trained"], "width", "mask", "alpha").items():
        cells = {
            "width": f"{width}",
            "mask": mask,
            "alpha": f"{alpha:g}",
            "pruned, %": f"{100 * found[0]['pruned']:.3g}",
        }
        for part in ("initial", "trained"):
            own = [row for row in found if row["part"] == part]
            for name, title in (("law", "law"), ("iid", "prediction"), ("shuffled", "shuffled")):
                cells[f"{part}: / {title}"] = _mean([row["error"] / row[name] for row in own])
            if part == "trained":
                # a random mask's difference is on average the pruned fraction of W
                shares = [row["error"] / (row["pruned"] * row["norm"]) for row in own if mask == "random"]
                cells[f"{part}: / (pruned x norm)"] = _mean(shares)
        made.append(cells)
    return made


def _assumption(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (width, _), found in grouped(rows, ["initial", "trained"], "width").items():
        # these are of the network, and the same in all its records
        first = {(row["part"], row["seed"]): row for row in found}
        cells = {"width": f"{width}"}
        ends = [row for (part, _), row in first.items() if part == "trained"]
        cells["accuracy, %"] = _mean([100 * row["accuracy"] for row in ends])
        cells["moved"] = _mean([row["moved"] for row in ends])
        for name, title in (("K", "K"), ("kurtosis", "excess kurtosis")):
            for part in ("initial", "trained"):
                cells[f"{title}, {part}"] = _mean([row[name] for (p, _), row in first.items() if p == part])
        for part in ("initial", "trained"):
            norms = [row["norm"] / row["norm_iid"] for (p, _), row in first.items() if p == part]
            cells[f"norm / prediction, {part}"] = _mean(norms)
        made.append(cells)
    return made


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.4g}" + ("" if math.isnan(half) else f" ± {half:.2g}")


def _slope(rows: Rows, name: str) -> str:
    if len({row["width"] for row in rows}) < 2:
        return ""
    mean, half = laws.slope([row["width"] for row in rows], [row[name] for row in rows])
    return f"{mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")

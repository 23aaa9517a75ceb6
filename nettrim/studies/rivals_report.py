"""Tables and figures of the comparison with pruning during training, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nettrim.studies.records import Records
from nettrim.studies.reporting import COLOURS, Rows, clip_percent, draw, grouped, mean, percent

__all__ = ["plot", "tables"]

#: methods in the order of the tables, and what their knobs are called
_KNOBS = {"Net-Trim": "epsilon", "surgery": "deviations c", "variational dropout": "strength"}


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {"Rivals: zeros and test accuracy of networks pruned during training": _accuracies(records.rows)}
    return {title: rows for title, rows in made.items() if rows}


def _accuracies(rows: Rows) -> list[dict[str, str]]:
    made, order = [], [*_KNOBS]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    groups = grouped(rows, "case", "method", "setting")
    for key in sorted(groups, key=lambda key: (cases.index(key[0]), order.index(key[1]), key[2])):
        (case, method, setting, _), found = key, groups[key]
        made.append(
            {
                "network": case,
                "method": method,
                "setting": f"{_KNOBS[method]} {setting:g}",
                "zeros, %": mean([row["zeros"] for row in found], 1, 100),
                "test accuracy, %": mean([row["accuracy"]["test"] for row in found], 2, 100),
                "less the dense one's": mean([row["accuracy"]["test"] - row["dense"]["test"] for row in found], 2, 100),
                "trained beside the parameters, %": mean([row["extra"] / row["parameters"] for row in found], 0, 100),
            }
        )
    return made


def plot(records: Records, folder: Path) -> list[Path]:
    """Accuracy against zeros for each network; a PNG file in a folder."""
    cases = list(grouped(records.rows, "case"))
    if not cases:
        return []

    def fill(axes: list[Any]) -> None:
        for panel, (case, recipe) in zip(axes, cases, strict=True):
            rows = [row for row in records.rows if (row["case"], row["recipe"]) == (case, recipe)]
            for colour, method in zip(COLOURS, _KNOBS, strict=False):
                by_setting = grouped([row for row in rows if row["method"] == method], "setting")
                points = sorted(
                    (*percent([row["zeros"] for row in found]), *percent([row["accuracy"]["test"] for row in found]))
                    for found in by_setting.values()
                )
                if points:
                    x, dx, y, dy = zip(*points, strict=True)
                    panel.errorbar(x, y, dy, dx, fmt="-", marker="o", ms=3, lw=1.4, color=colour, label=method)
            panel.axhline(percent([row["dense"]["test"] for row in rows])[0], color="black", lw=0.8, ls=":")
            panel.set(title=case, xlabel="zeros, %", ylabel="test accuracy, %")
        clip_percent(axes)

    return [draw(folder / "rivals.png", len(cases), fill)]

"""Tables and figures of the comparison with HPTD, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nettrim.studies.records import Records, interval
from nettrim.studies.reporting import COLOURS, Rows, clip_percent, draw, grouped, mean, percent

__all__ = ["plot", "tables"]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {
        "HPTD: test accuracy before and after fine-tuning, %": _accuracies(records.rows),
        "HPTD: zeros of the layers after Net-Trim, %": _layers(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _accuracies(rows: Rows) -> list[dict[str, str]]:
    made = []
    groups = grouped(rows, "case", "samples", "epsilon")
    for (case, samples, epsilon, _), found in _ordered(groups):
        ours, theirs = ({row["seed"]: row for row in found if row["method"] == m} for m in ("Net-Trim", "HPTD"))
        cells = {"network": case, "samples": f"{samples}", "epsilon": f"{epsilon:g}"}
        cells["zeros, %"] = mean([row["zeros"] for row in ours.values()], 1, 100)
        cells["dense"] = mean([row["dense"]["test"] for row in ours.values()], 2, 100)
        epochs = len(found[0]["validation"]) - 1
        for k, when in enumerate(("pruned", f"after {epochs} epochs")):
            for name, by_seed in (("Net-Trim", ours), ("HPTD", theirs)):
                cells[f"{name}, {when}"] = mean([row["test"][k] for row in by_seed.values()], 2, 100)
            gains = [row["test"][k] - theirs[seed]["test"][k] for seed, row in ours.items() if seed in theirs]
            cells[f"difference, {when}"] = mean(gains, 2, 100)
        made.append(cells)
    return made


def _layers(rows: Rows) -> list[dict[str, str]]:
    """The right panel of the figures, layer by layer."""
    made = []
    groups = grouped([row for row in rows if row["method"] == "Net-Trim"], "case", "samples", "epsilon")
    for (case, samples, epsilon, _), found in _ordered(groups):
        cells = {"network": case, "samples": f"{samples}", "epsilon": f"{epsilon:g}"}
        cells["all"] = mean([row["zeros"] for row in found], 1, 100)
        ends = [status for row in found for status in row["statuses"]]
        cells["programs solved"] = f"{ends.count('solved')} of {len(ends)}"
        for k, name in enumerate(found[0]["layers"], 1):
            cells[f"layer {k}"] = mean([row["layers"][name] for row in found], 1, 100)
        made.append(cells)
    return made


def _ordered(groups: dict[tuple[Any, ...], Rows]) -> list[tuple[tuple[Any, ...], Rows]]:
    """Networks as they come, the smallest errors first."""
    cases = list(dict.fromkeys(key[0] for key in groups))
    return sorted(groups.items(), key=lambda item: (cases.index(item[0][0]), item[0][1], item[0][2], item[0][3]))


def plot(records: Records, folder: Path) -> list[Path]:
    """For each network: accuracy against zeros, against epochs, and zeros against epsilon; PNG files in a folder."""
    paths = []
    for (case, samples, _), rows in grouped(records.rows, "case", "samples").items():
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{case}_{samples}")

        def fill(axes: list[Any], rows: Rows = rows, case: str = case) -> None:
            _fill(axes, rows)
            axes[0].set_title(case)

        paths.append(draw(folder / f"hptd_{name}.png", 3, fill))
    return paths


def _fill(axes: list[Any], rows: Rows) -> None:
    last = len(rows[0]["validation"]) - 1
    epsilons = sorted({row["epsilon"] for row in rows})
    for method, colour in (("Net-Trim", COLOURS[0]), ("HPTD", COLOURS[1])):
        own = {e: [row for row in rows if (row["method"], row["epsilon"]) == (method, e)] for e in epsilons}
        own = {e: found for e, found in own.items() if found}
        zeros = [100 * interval([row["zeros"] for row in found])[0] for found in own.values()]
        for k, (line, when) in enumerate(((":", "pruned"), ("-", f"after {last} epochs"))):
            points = [percent([row["test"][k] for row in found]) for found in own.values()]
            axes[0].errorbar(
                *(zeros, [m for m, _ in points], [h for _, h in points]),
                **{"fmt": line, "marker": "o", "ms": 3, "lw": 1.4, "color": colour, "label": f"{method}, {when}"},
            )
        for shade, (epsilon, found) in zip(np.linspace(1, 0.35, len(own)), own.items(), strict=True):
            points = [percent([row["validation"][k] for row in found]) for k in range(last + 1)]
            axes[1].plot(range(last + 1), [m for m, _ in points], color=colour, alpha=shade, marker="o", ms=3)
            axes[1].annotate(f"{epsilon:g}", (last, points[-1][0]), fontsize=7, color=colour)
        if method == "Net-Trim":
            axes[2].plot(list(own), zeros, color=colour, marker="o", ms=3)
    dense = interval([100 * row["dense"]["test"] for row in rows])[0]
    axes[0].axhline(dense, color="black", lw=0.8, ls=":")
    axes[0].set(xlabel="zeros, %", ylabel="test accuracy, %")
    axes[1].set(xlabel="epochs of fine-tuning (numbers: epsilon)", ylabel="validation accuracy, %")
    axes[1].set_xticks(range(last + 1))
    clip_percent(axes[:2])
    axes[2].set(xlabel="epsilon", ylabel="zeros, %")

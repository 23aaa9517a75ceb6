"""Tables and figures of the study of clipping and noise, from its records."""

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
        "A few steps on one batch: loss and gradient norm": _steps(records.rows),
        "Clipped and noisy training at the same rate": _trainings(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _steps(rows: Rows) -> list[dict[str, str]]:
    made = []
    steps = [row for row in rows if row["part"] == "steps"]
    for (start, mode, _), found in grouped(steps, "start", "mode").items():
        # batches of one network are not independent networks: their mean first, and the interval over the seeds
        cells = {"start": start, "mode": mode}
        for name, title in (("loss_before", "loss before"), ("loss", "after"), ("norm_before", "norm before")):
            cells[title] = mean([float(np.mean(row[name])) for row in found])
        cells["norm after"] = mean([float(np.mean(row["norm"])) for row in found])
        made.append(cells)
    return made


def _trainings(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (mode, _), found in grouped([row for row in rows if row["part"] == "training"], "mode").items():
        made.append(
            {
                "mode": mode,
                "epochs": f"{len(found[0]['curve'])}",
                "training loss": mean([row["end"]["loss"] for row in found]),
                "test accuracy, %": mean([row["end"]["accuracy"] for row in found], 2, 100),
            }
        )
    return made


def plot(records: Records, folder: Path) -> list[Path]:
    """Loss and accuracy of the trainings by epoch, means over the seeds; a PNG file in a folder."""
    rows = [row for row in records.rows if row["part"] == "training"]
    recipes = grouped(rows)
    return [
        draw(folder / f"dp_noise_clip_{recipe}.png", 2, partial(_fill, rows=found))
        for (recipe,), found in recipes.items()
    ]


def _fill(axes: list[Any], rows: Rows) -> None:
    for colour, ((mode, _), found) in zip(COLOURS, grouped(rows, "mode").items(), strict=False):
        for panel, name in zip(axes, ("loss", "accuracy"), strict=True):
            values = np.mean([[point[name] for point in row["curve"]] for row in found], axis=0)
            panel.plot([point["epoch"] for point in found[0]["curve"]], values, color=colour, label=mode)
            panel.set(xlabel="epoch", ylabel={"loss": "training loss", "accuracy": "test accuracy"}[name])
    axes[0].set_yscale("log")

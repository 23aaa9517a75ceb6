"""Tables and figures of the study of dropped inputs, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nettrim.studies.records import Records
from nettrim.studies.reporting import Rows, draw, grouped, mean

__all__ = ["plot", "tables"]

#: methods in the order of the tables, as they are called there
NAMES = {"plain": "Net-Trim", "reweighted": "Net-Trim, reweighted", "magnitude": "HPTD, as many as plain"}


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {"Features: inputs without a weight in the first layer": _dropped(records.rows)}
    return {title: rows for title, rows in made.items() if rows}


def _dropped(rows: Rows) -> list[dict[str, str]]:
    pixels = {(row["seed"], row["recipe"]): row for row in rows if row["method"] == "pixels"}
    made = []
    groups = grouped([row for row in rows if row["method"] != "pixels"], "epsilon", "method")
    order = [*NAMES]
    for epsilon, method, recipe in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        found = groups[epsilon, method, recipe]
        own = [pixels[row["seed"], row["recipe"]] for row in found]
        made.append(
            {
                "method": NAMES[method],
                "epsilon": f"{epsilon:g}",
                "zeros in the layer, %": mean([row["layer"] for row in found], 1, 100),
                "inputs dropped": mean([len(row["dropped"]) for row in found], 0),
                "of these, not blank in the calibration samples": mean(
                    [len(set(row["dropped"]) - set(at["blank"])) for row, at in zip(found, own, strict=True)], 0
                ),
                "images with ink there: median, %": mean(
                    [v for v in map(_median, found, own) if v is not None], 2, 100
                ),
                "less ink than one that is read, %": mean(
                    [row["separation"] for row in found if row["separation"] is not None], 1, 100
                ),
                "test accuracy, %": mean([row["accuracy"]["test"] for row in found], 2, 100),
                "dense": mean([at["accuracy"]["test"] for at in own], 2, 100),
                "blank pixels": mean([len(at["blank"]) for at in own], 0),
            }
        )
    return made


def _median(row: dict[str, Any], pixels: dict[str, Any]) -> float | None:
    """Of the dropped pixels that are not blank, the median of the images that have ink there; None without any."""
    ink = [pixels["ink"][at] for at in set(row["dropped"]) - set(pixels["blank"])]
    return float(np.median(ink)) if ink else None


def plot(records: Records, folder: Path) -> list[Path]:
    """Ink, and for the largest epsilon how many seeds drop each pixel, by each method; a PNG file."""
    pixels = [row for row in records.rows if row["method"] == "pixels"]
    others = [row for row in records.rows if row["method"] != "pixels"]
    if not pixels or not others:
        return []
    recipe = pixels[-1]["recipe"]
    epsilon = max(row["epsilon"] for row in others)
    height, width = pixels[-1]["shape"]
    pictures = {"images with ink": np.mean([row["ink"] for row in pixels if row["recipe"] == recipe], axis=0)}
    blank = _times([row["blank"] for row in pixels if row["recipe"] == recipe], height * width)
    pictures["blank in the calibration samples"] = blank
    for method, name in NAMES.items():
        found = [r for r in others if (r["method"], r["epsilon"], r["recipe"]) == (method, epsilon, recipe)]
        if found:
            pictures[f"dropped: {name}"] = _times([row["dropped"] for row in found], height * width)

    def fill(axes: list[Any]) -> None:
        for panel, (title, values) in zip(axes, pictures.items(), strict=True):
            panel.imshow(values.reshape(height, width), cmap="Greys", vmin=0, vmax=1)
            panel.set_title(title, fontsize=9)
            panel.set(xticks=[], yticks=[])

    return [draw(folder / "features.png", len(pictures), fill, size=(2.6, 2.6))]


def _times(chosen: list[list[int]], count: int) -> np.ndarray:
    """Fraction of the seeds that chose each pixel."""
    return np.mean([np.isin(np.arange(count), own) for own in chosen], axis=0)

"""The tables of the inversion study, from its records."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nettrim.privacy.images import TOO_WEAK, Gate, gate
from nettrim.studies.records import Records, interval

__all__ = ["cells", "gate_of", "share", "tables"]

#: paper 000, Table 1: test accuracy in % after n rounds, for comparison only; our CIFAR-10 is of JPEG files
PAPER = {
    "MNIST": (99.0, 98.9, 99.0, 99.0, 99.0, 99.0, 99.0, 98.9, 98.8, 98.8, 98.7, 98.4, 98.1, 98.0, 97.5, 97.5),
    "CIFAR-10": (94.1, 93.8, 93.6, 93.4, 93.0, 92.5, 91.9, 90.7, 89.8, 88.2, 86.3, 83.3, 75.9, 72.4, 61.9, 10.0),
}

_ORDER = tuple("conv1 conv2 fc1 fc2 fc3 conv2-1 conv2-2 conv3-1 conv3-2 conv4-1 grey public aware".split())

Rows = list[dict[str, Any]]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over seeds for accuracies and over images otherwise."""
    made = {
        "Table 1: test accuracy after rounds of pruning": _accuracies(records.rows),
        "PSNR of the inverted images, dB": _inversions(records.rows, "psnr"),
        "PSNR of the mean of the nearest public images, dB": _inversions(records.rows, "neighbours"),
        "SSIM of the inverted images": _inversions(records.rows, "ssim"),
        "Relative squared error of the representation": _inversions(records.rows, "feature_error"),
        "What the layers' weights let through": _passages(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def cells(rows: Rows) -> dict[tuple[str, str, str], dict[int, Rows]]:
    """Records of inversions by recipe, layer and attacker, and in these by round; in the order of the layers.

    The recipe says nothing of the seed, so that seeds are together.
    """
    found: dict[tuple[str, str, str], dict[int, Rows]] = {}
    for row in rows:
        if row["part"] == "inversion":
            by_round = found.setdefault((row["recipe"], row["layer"], row["attacker"]), {})
            by_round.setdefault(row["round"], []).append(row)
    order = sorted(found, key=lambda key: (key[0], _ORDER.index(key[1]), _ORDER.index(key[2])))
    return {key: dict(sorted(found[key].items())) for key in order}


def gate_of(by_round: dict[int, Rows], name: str = "psnr") -> Gate | None:
    """The gate of a layer and an attacker, on the dense network; None if that was not attacked.

    It is for the images that were found, or for "neighbours", the start of the search.
    """
    if 0 not in by_round:
        return None
    attack, blank, mean = (_over_seeds(by_round[0], title) for title in (name, "blank", "mean"))
    return gate(attack, blank, mean)


def share(row: dict[str, Any]) -> str:
    """The share of weights that is kept, as the tables write it."""
    return f"{100 * row['kept'] / row['weights']:.3g} %"


def _over_seeds(rows: Rows, name: str) -> np.ndarray:
    """One number for each image, the mean over the seeds."""
    return np.mean([row[name] for row in rows], axis=0)


def _accuracies(rows: Rows) -> list[dict[str, str]]:
    groups: dict[tuple[str, int], Rows] = {}
    for row in rows:
        if row["part"] == "accuracy":
            groups.setdefault((row["recipe"], row["round"]), []).append(row)
    made = []
    for (_, number), found in sorted(groups.items()):
        # records of the first network do not name it
        of = "CIFAR-10" if found[0].get("network") == "resnet18" else "MNIST"
        made.append(
            {
                "kept, %": f"{100 * found[0]['kept'] / found[0]['weights']:.1f}",
                "weights": f"{found[0]['kept']:,}",
                "accuracy, %": _mean([100 * row["accuracy"] for row in found]),
                f"paper's, {of}": f"{PAPER[of][number]:.1f}" if number < len(PAPER[of]) else "",
            }
        )
    return made


def _inversions(rows: Rows, name: str) -> list[dict[str, str]]:
    found = cells(rows)
    numbers = sorted({n for by_round in found.values() for n in by_round})
    columns = {n: share(next(by_round[n] for by_round in found.values() if n in by_round)[0]) for n in numbers}
    made = []
    for (_, layer, attacker), by_round in found.items():
        first = next(iter(by_round.values()))
        if first[0][name] is None:
            continue
        judged = gate_of(by_round, "neighbours" if name == "neighbours" else "psnr")
        line = {"layer": layer, "attacker": attacker}
        if name in ("psnr", "neighbours"):
            line |= {title: _mean(list(_over_seeds(first, title))) for title in ("blank", "mean")}
        for n, title in columns.items():
            cell = _mean(list(_over_seeds(by_round[n], name))) if n in by_round else ""
            # the dense network's own cell shows how weak; the others would be read as privacy
            line[title] = cell if n == 0 or not cell else (judged.read(cell) if judged else TOO_WEAK)
        line["gate"] = _verdict(judged)
        made.append(line)
    return made


def _verdict(judged: Gate | None) -> str:
    if judged is None:
        return "dense network not attacked"
    least = int(np.argmin(np.array(judged.margins) - np.nan_to_num(judged.halves)))
    margin = f"{judged.margins[least]:+.1f} ± {judged.halves[least]:.1f} dB to the {('blank', 'mean')[least]} image"
    return f"{'passed' if judged.passed else TOO_WEAK}, {margin}"


def _passages(rows: Rows) -> list[dict[str, str]]:
    made: dict[tuple[str, str, int], dict[str, str]] = {}
    for (recipe, layer, _), by_round in cells(rows).items():
        for number, found in by_round.items():
            through = found[0]["passage"]
            if through is None:
                continue
            made[recipe, layer, number] = {
                "layer": layer,
                "kept in the network": share(found[0]),
                "outputs with weights": f"{through['alive']} of {through['outputs']}",
                "inputs used": f"{through['used']} of {through['inputs']}",
                "rank": f"{through['rank']}",
            }
    return list(made.values())


def _mean(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3g}" + ("" if math.isnan(half) else f" ± {half:.2g}")

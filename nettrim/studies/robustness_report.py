"""Tables and figures of the study of robustness, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nettrim.studies.records import Records
from nettrim.studies.reporting import COLOURS, Rows, clip_percent, draw, mean, percent

__all__ = ["plot", "tables"]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {"Robustness: test accuracy in noise of the standard deviation at the top, %": _accuracies(records.rows)}
    return {title: rows for title, rows in made.items() if rows}


def _curves(rows: Rows) -> dict[tuple[Any, ...], Rows]:
    """Curves of all seeds by network, recipe, method, epsilon and whether fine-tuned; the dense one first."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        for curve in row["rows"]:
            key = (row["case"], row["recipe"], row["method"], row["epsilon"], curve["tuned"])
            groups.setdefault(key, []).append(curve | {"seed": row["seed"]})
    order = {"dense": 0, "Net-Trim": 1, "magnitude": 2}
    return dict(sorted(groups.items(), key=lambda item: (*item[0][:2], item[0][4], item[0][3], order[item[0][2]])))


def _accuracies(rows: Rows) -> list[dict[str, str]]:
    made, curves = [], _curves(rows)
    for (case, recipe, method, epsilon, tuned), found in curves.items():
        cells = {"network": case, "method": _name(method, epsilon, tuned)}
        cells["zeros, %"] = mean([curve["zeros"] for curve in found], 1, 100)
        for k, noise in enumerate(found[0]["noises"]):
            cells[f"{noise:g}"] = mean([curve["accuracy"][k] for curve in found], 2, 100)
        if method != "dense":
            dense = {curve["seed"]: curve for curve in curves.get((case, recipe, "dense", 0.0, False), [])}
            lost = [_loss(curve) - _loss(dense[curve["seed"]]) for curve in found if curve["seed"] in dense]
            cells["loss to the strongest noise, less the dense network's"] = mean(lost, 2, 100)
        made.append(cells)
    return made


def _loss(curve: dict[str, Any]) -> float:
    """Accuracy that the strongest noise costs."""
    return curve["accuracy"][0] - curve["accuracy"][-1]


def _name(method: str, epsilon: float, tuned: bool) -> str:
    if method == "dense":
        return "dense"
    as_many = f"epsilon {epsilon:g}" if method == "Net-Trim" else f"as many as at {epsilon:g}"
    return f"{method}, {as_many}{', tuned' if tuned else ''}"


def plot(records: Records, folder: Path) -> list[Path]:
    """Accuracy against the noise, a column for each network, fine-tuned ones below; a PNG file."""
    curves = _curves(records.rows)
    cases = list(dict.fromkeys(key[:2] for key in curves))
    if not cases:
        return []

    def fill(axes: list[Any]) -> None:
        for k, panel in enumerate(axes):
            tuned, case = k >= len(cases), cases[k % len(cases)]
            own = {key[2:]: found for key, found in curves.items() if key[:2] == case}
            epsilons = sorted({key[1] for key in own if key[0] != "dense"})
            for (method, epsilon, of_tuned), found in own.items():
                if method != "dense" and of_tuned != tuned:
                    continue
                colour = "black" if method == "dense" else COLOURS[epsilons.index(epsilon) % len(COLOURS)]
                line = "--" if method == "magnitude" else "-"
                middles, halves = _means(found)
                label = _name(method, epsilon, False)
                panel.errorbar(found[0]["noises"], middles, halves, fmt=line, color=colour, lw=1.4, label=label)
            title = f"{case[0]}{', pruned ones fine-tuned' if tuned else ''}"
            panel.set(title=title, xlabel="standard deviation of the noise", ylabel="test accuracy, %")
        clip_percent(axes)

    return [draw(folder / "robustness.png", len(cases), fill, rows=2)]


def _means(curves: Rows) -> tuple[list[float], list[float]]:
    """Means over the seeds, and half their intervals (zero for one seed), in percent."""
    found = [percent(column) for column in zip(*(curve["accuracy"] for curve in curves), strict=True)]
    return [middle for middle, _ in found], [half for _, half in found]

"""Tables and figures of the study of regularised training, from its records."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from nettrim.studies.records import Records
from nettrim.studies.reporting import COLOURS, Rows, clip_percent, draw, grouped, mean, percent

__all__ = ["plot", "tables"]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {
        "Regularised: zeros and test accuracy, before and after Net-Trim": _each(records.rows),
        "Regularised: does a stronger penalty, or a larger epsilon, make more zeros?": _response(records.rows),
    }
    return {title: rows for title, rows in made.items() if rows}


def _groups(rows: Rows) -> list[tuple[tuple[Any, ...], Rows]]:
    """By network, kind of regularisation, strengths and epsilon."""
    groups = grouped(rows, "network", "dropout", "penalty", "method", "epsilon")
    networks = list(dict.fromkeys(row["network"] for row in rows))

    def order(item: tuple[tuple[Any, ...], Rows]) -> tuple[Any, ...]:
        network, dropout, penalty, _, epsilon, recipe = item[0]
        return networks.index(network), penalty > 0, dropout > 0, dropout, penalty, epsilon, recipe

    return sorted(groups.items(), key=order)


def _each(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (network, dropout, penalty, method, epsilon, _), found in _groups(rows):
        made.append(
            {
                "network": network,
                "Dropout": f"{dropout:g}",
                "l1": f"{penalty:g}",
                "then": "" if method == "trained" else f"Net-Trim, epsilon {epsilon:g}",
                "zeros, %": mean([row["zeros"] for row in found], 1, 100),
                "test accuracy, %": mean([row["accuracy"] for row in found], 2, 100),
                "tuned, %": mean([row["tuned"] for row in found], 2, 100),
            }
        )
    return made


def _response(rows: Rows) -> list[dict[str, str]]:
    """Of the steps to the next strength, seed by seed, how many made more zeros."""
    made = []
    for (network, _), found in grouped(rows, "network").items():
        cells = {"network": network}
        plain = [row for row in found if row["dropout"] == 0]
        for title, own, knob in (
            ("l1 penalty", [row for row in plain if row["method"] == "trained"], "penalty"),
            ("epsilon", [row for row in plain if row["method"] != "trained" and row["penalty"] == 0], "epsilon"),
        ):
            steps = []
            for seed in sorted({row["seed"] for row in own}):
                curve = [row["zeros"] for row in sorted(own, key=lambda row: row[knob]) if row["seed"] == seed]
                steps += [b > a for a, b in pairwise(curve)]
            cells[f"{title}: steps with more zeros"] = f"{sum(steps)} of {len(steps)}"
        made.append(cells)
    return made


def plot(records: Records, folder: Path) -> list[Path]:
    """For each network: what Net-Trim adds to each kind of training, and l1 training against Net-Trim; PNG files."""
    paths = []
    for (network, _), rows in grouped(records.rows, "network").items():
        name = "".join(letter if letter.isalnum() else "_" for letter in network)

        def fill(axes: list[Any], rows: Rows = rows, network: str = network) -> None:
            _fill_kinds(axes[0], rows)
            _fill_rivals(axes[1], rows)
            axes[0].set_title(f"{network}: Net-Trim after each training")
            axes[1].set_title("l1 training against Net-Trim, tuned")
            for panel in axes:
                panel.set(xlabel="zeros, %", ylabel="test accuracy, %")
                # intervals of three seeds may reach beyond what there is
                panel.set_xlim(max(panel.get_xlim()[0], -3), min(panel.get_xlim()[1], 103))
            clip_percent(axes)

        paths.append(draw(folder / f"regularised_{name}.png", 2, fill))
    return paths


def _fill_kinds(panel: Any, rows: Rows) -> None:
    """A line from each trained network to its prunings, after fine-tuning."""
    pairs = list(dict.fromkeys(key[1:3] for key, _ in _groups(rows)))
    for k, (dropout, penalty) in enumerate(pairs):
        own = [row for row in rows if (row["dropout"], row["penalty"]) == (dropout, penalty)]
        colour = COLOURS[k % len(COLOURS)]
        points = _points(own, "tuned")
        panel.plot(
            *list(zip(*points, strict=True))[::2], color=colour, lw=1.4, label=f"Dropout {dropout:g}, l1 {penalty:g}"
        )
        for index, point in enumerate(points):
            marker = "s" if index == 0 else "o"
            panel.errorbar(*_bars(point), fmt=marker, ms=5 if index == 0 else 3, color=colour)


def _fill_rivals(panel: Any, rows: Rows) -> None:
    plain = [row for row in rows if row["dropout"] == 0]
    for colour, label, own in (
        (COLOURS[0], "Net-Trim, trained without either", [row for row in plain if row["penalty"] == 0]),
        (COLOURS[1], "l1 training", [row for row in plain if row["method"] == "trained"]),
    ):
        for name, line in (("accuracy", ":"), ("tuned", "-")):
            points = _points(own, name)
            x, dx, y, dy = zip(*points, strict=True)
            what = f"{label}{', tuned' if name == 'tuned' else ''}"
            panel.errorbar(x, y, dy, dx, fmt=line, marker="o", ms=3, lw=1.4, color=colour, label=what)


def _points(rows: Rows, name: str) -> list[tuple[float, float, float, float]]:
    """Zeros and accuracy in percent, each with half its interval, by strength."""
    groups = grouped(rows, "penalty", "epsilon")
    return [
        (*percent([row["zeros"] for row in groups[key]]), *percent([row[name] for row in groups[key]]))
        for key in sorted(groups)
    ]


def _bars(point: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """As errorbar takes them."""
    x, dx, y, dy = point
    return x, y, dy, dx

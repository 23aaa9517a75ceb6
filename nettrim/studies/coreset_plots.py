"""The figures of the coreset study, from its records."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nettrim.studies.coreset_tables import Row, grouped, parts_of
from nettrim.studies.records import Records, interval

__all__ = ["draw"]

#: Okabe and Ito's colours
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7f868c"
METHODS = {
    ("random weights", "signed"): ("random weights", ORANGE, "-"),
    ("deterministic weights", "signed"): ("deterministic weights", GREEN, "-"),
    ("deterministic weights, 3K", "median Delta"): ("deterministic, as printed", GREEN, ":"),
    ("neurons", "hoeffding"): ("neurons", PINK, "-"),
    ("magnitude", "residuals"): ("magnitude, by residuals", GREY, "--"),
    ("deterministic weights", "residuals"): ("deterministic, by residuals", GREEN, "--"),
    ("Net-Trim", "residuals"): ("Net-Trim, by residuals", BLUE, "--"),
}


def draw(records: Records, folder: Path) -> list[Path]:
    """A figure for each part that has records.

    Parameters
    ----------
    records : Records
    folder : Path
        Created if it is not there.

    Returns
    -------
    list of Path
        PNG files.
    """
    # a Figure of its own: the caller's plots and backend are left alone
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    network = records.rows[0]["network"] if records.rows else ""
    paths = []
    for name, fill in (
        ("guarantees", _guarantees),
        ("counts", _counts),
        ("tuning", _tuning),
        ("ball and scale", _ball_and_scale),
    ):
        figure = Figure(figsize=(10, 4.3), layout="constrained")
        if not fill(figure, records, network):
            continue
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e6e9ec")
        paths.append(folder / f"{records.path.stem}.{name.replace(' ', '_')}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


def _line(axes: Any, rows: list[tuple[Row, Row]], x: Callable[..., Any], y: Callable[..., Any], *style: Any) -> None:
    """Means over the seeds with their intervals."""
    label, colour, line = style
    points: dict[float, list[float]] = {}
    for _, row in rows:
        value = y(row)
        if value is not None and math.isfinite(value):
            points.setdefault(x(row), []).append(value)
    places = sorted(points)
    if not places:
        return
    middles, halves = zip(*(interval(points[place]) for place in places), strict=True)
    axes.plot(places, middles, line, color=colour, label=label, marker="o", ms=3.5)
    low, high = ([m + s * (0 if math.isnan(h) else h) for m, h in zip(middles, halves, strict=True)] for s in (-1, 1))
    axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)


def _guarantees(figure: Any, records: Records, network: str) -> bool:
    """Weights left against labels guaranteed, for the hardest and the moderate case (Figure 6)."""
    groups = grouped(
        ((r, w) for r, w in parts_of(records, "weights", "neurons") if r["network"] == network),
        lambda r, w: (r["case"], w["method"], w["translation"]),
    )
    cases = [case for case in ("difficult", "moderate", "easy") if any(key[0] == case for key in groups)]
    if not cases:
        return False
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, case in zip(panels, cases, strict=True):
        for (method, translation), style in METHODS.items():
            rows = groups.get((case, method, translation), [])
            _line(axes, rows, lambda row: 100 * row["share"], lambda row: 100 * row["density"], *style)
        axes.set(title=f"{network}, {case}", xlabel="correct labels guaranteed, %", ylim=(0, 103))
    panels[0].set_ylabel("weights or neurons left, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return True


def _counts(figure: Any, records: Records, network: str) -> bool:
    """Accuracy and guaranteed labels, and bounds and errors, against the sparsity (Figures 3 and 8)."""
    rows = [(r, w) for r, w in parts_of(records, "sparsity") if "refused" not in w]
    case = "moderate" if any(r["case"] == "moderate" for r, _ in rows) else "difficult"
    groups = grouped(((r, w) for r, w in rows if r["case"] == case), lambda r, w: (w["method"],))
    if not groups:
        return False
    left, right = figure.subplots(1, 2)
    for (method, _), (label, colour, _) in METHODS.items():
        found = groups.get((method,), [])
        if not found or label.endswith(("as printed", "residuals")):
            continue

        def of(field: str) -> Callable[[Row], float]:
            return lambda row: 100 * row[field]

        _line(left, found, of("sparsity"), of("accuracy"), f"{label}: accuracy", colour, "-")
        _line(left, found, of("sparsity"), of("guaranteed"), f"{label}: guaranteed", colour, "--")
        observed = "error" if method == "neurons" else "of_halves"
        _line(right, found, of("sparsity"), lambda row: row["epsilon"], f"{label}: bound", colour, "--")
        _line(right, found, of("sparsity"), lambda row, o=observed: row[o][0], f"{label}: observed", colour, "-")
    left.set(title=f"{network}, {case}", xlabel="sparsity of the last layer, %", ylabel="labels, %", ylim=(-3, 103))
    right.set(title="errors (neurons: in the logits' units)", xlabel="sparsity of the last layer, %", yscale="log")
    for axes in (left, right):
        axes.legend(
            frameon=False, fontsize=7.5, handlelength=3.2, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    return True


def _tuning(figure: Any, records: Records, network: str) -> bool:
    """Accuracy, and error of the logits, before and after fine-tuning (Figure 3)."""
    rows = list(parts_of(records, "tuning"))
    if not rows:
        return False
    left, right = figure.subplots(1, 2)
    for when, colour in (("before", ORANGE), ("after", BLUE)):
        for axes, pick in ((left, lambda p: 100 * p["accuracy"]), (right, lambda p: p["error"][0])):
            _line(
                *(axes, rows, lambda row: 100 * row["sparsity"], lambda row, w=when, f=pick: f(row[w])),
                *(f"{when} fine-tuning", colour, "-"),
            )
    left.set(title=f"{network}, difficult", xlabel="sparsity of the last layer, %", ylabel="accuracy, %")
    left.set_ylim(-3, 103)
    right.set(title="mean error of the logits", xlabel="sparsity of the last layer, %", ylim=(0, None))
    left.legend(frameon=False)
    return True


def _ball_and_scale(figure: Any, records: Records, network: str) -> bool:
    """Errors on data and on the sphere (Figure 11); samples asked for against the scale (Figure 12)."""
    ball = [(r, w) for r, w in parts_of(records, "ball") if "refused" not in w]
    scale = list(parts_of(records, "scaling"))
    if not (ball and scale):
        return False
    left, right = figure.subplots(1, 2)
    for field, label, colour in (("data", "validation samples", BLUE), ("sphere", "random, norm beta", ORANGE)):
        _line(left, ball, lambda row: 100 * row["sparsity"], lambda row, f=field: row[f][0], label, colour, "-")
    _line(left, ball, lambda row: 100 * row["sparsity"], lambda row: row["hoeffding"], "bound at an input", GREY, "--")
    for field, label, colour in (("printed", "A.4 as printed", ORANGE), ("hoeffding", "Hoeffding", BLUE)):
        _line(right, scale, lambda row: row["scale"], lambda row, f=field: row[f], label, colour, "-")
    left.set(title=f"{network}, difficult", xlabel="neurons pruned, %", ylabel="error of the logits", yscale="log")
    right.set(title="50 % of the labels guaranteed", xlabel="scale of the hidden layer", ylabel="samples")
    right.set(xscale="log", yscale="log")
    left.legend(frameon=False)
    right.legend(frameon=False)
    return True

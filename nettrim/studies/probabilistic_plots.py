"""The figures of the study of probabilistic bounds, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nettrim.studies.probabilistic_tables import Rows, grouped
from nettrim.studies.records import Records, interval

__all__ = ["draw"]

#: Okabe and Ito's colours, one for each exponent
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_KINDS = ("random", "magnitude")


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
    paths = []
    for name, parts, fill in (
        ("layers", ["layer"], _fill_layers),
        ("networks", ["network"], _fill_networks),
        ("trained", ["initial", "trained"], _fill_trained),
    ):
        found = [row for row in records.rows if row["part"] in parts]
        if not found:
            continue
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        panels = figure.subplots(1, 2)
        colours = dict(zip(sorted({row["alpha"] for row in found}), _COLOURS * 9, strict=False))
        for axes, mask in zip(panels, _KINDS, strict=True):
            fill(axes, [row for row in found if row["mask"] == mask], colours)
            axes.set(title=f"{mask} mask", xscale="log", xlabel="width d")
            widths = sorted({row["width"] for row in found})
            axes.set_xticks(widths, [str(width) for width in widths])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e6e9ec")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        paths.append(folder / f"probabilistic_{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


def _curve(rows: Rows, value: Any) -> tuple[list[int], list[float], list[float]]:
    """Widths, means over the seeds, and half their intervals (zero for one seed)."""
    widths = sorted({row["width"] for row in rows})
    found = [interval([value(row) for row in rows if row["width"] == width]) for width in widths]
    return widths, [mean for mean, _ in found], [float(np.nan_to_num(half)) for _, half in found]


def _fill_layers(axes: Any, rows: Rows, colours: dict[float, str]) -> None:
    for (alpha, _), found in grouped(rows, ["layer"], "alpha").items():
        widths, means, halves = _curve(found, lambda row: row["error"])
        axes.errorbar(widths, means, halves, fmt="o", ms=4, color=colours[alpha], label=f"alpha = {alpha:g}")
        axes.plot(*_curve(found, lambda row: row["law"])[:2], color=colours[alpha], lw=1)
    axes.set(yscale="log", ylabel="error; line: the law")


def _fill_networks(axes: Any, rows: Rows, colours: dict[float, str]) -> None:
    for k, depth in enumerate(sorted({row["depth"] for row in rows})):
        own = [row for row in rows if row["depth"] == depth]
        line = ("-", "--", ":", "-.")[k % 4]
        for (alpha, _), found in grouped(own, ["network"], "alpha").items():
            widths, low, _ = _curve(found, lambda row: row["lower"])
            _, high, _ = _curve(found, lambda row: row["upper"])
            label = f"alpha = {alpha:g}, {depth} layers"
            axes.plot(widths, low, line, color=colours[alpha], label=label, lw=1.4, marker="^", ms=4)
            axes.plot(widths, high, line, color=colours[alpha], lw=1.4, marker="v", ms=4)
    axes.set(yscale="log", ylabel="error: from below, from above")


def _fill_trained(axes: Any, rows: Rows, colours: dict[float, str]) -> None:
    for part, line in (("initial", "--"), ("trained", "-")):
        for (alpha, _), found in grouped(rows, [part], "alpha").items():
            widths, means, halves = _curve(found, lambda row: row["error"] / row["iid"])
            label = f"alpha = {alpha:g}, {part}"
            axes.errorbar(widths, means, halves, fmt=line, marker="o", ms=3, lw=1.4, color=colours[alpha], label=label)
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set(ylabel="error over that of independent entries")

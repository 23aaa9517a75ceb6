"""Tables and figures of the study of recovery, from its records."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.bounds.phase import GAUSSIAN_EIGENVALUE, l1_dimension, samples_needed
from nettrim.studies.records import Records
from nettrim.studies.reporting import Rows, draw, grouped, mean

__all__ = ["needed", "plot", "tables"]

METHODS = ("plain", "reweighted")


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    transitions = [row for row in records.rows if row["part"] == "transition"]
    eigenvalues = [row for row in records.rows if row["part"] == "eigenvalue"]
    made = {
        "Recovery: samples over inputs, P/N, from which half of the neurons are found": _transitions(transitions),
        "Recovery: active samples over inputs, from which half of the neurons are found": _active(transitions),
        "Recovery: neurons found from fewer samples than inputs (the largest P < N), %": _below(transitions),
        "Recovery: smallest eigenvalue of the virtual input's covariance": _eigenvalues(eigenvalues),
    }
    return {title: rows for title, rows in made.items() if rows}


def needed(row: dict[str, Any], method: str, what: str) -> float:
    """Samples over N that the median neuron of a layer needs: the middle between the last count that does not suffice
    and the first from which all do; infinite if the largest is too small.

    Parameters
    ----------
    row : dict
        A record of the part "transition".
    method : {"plain", "reweighted"}
    what : {"P", "active"}
        Count all samples, or those on which the neuron is active.

    Returns
    -------
    float
    """
    found = np.array([cell[method] for cell in row["rows"]])
    counts = np.array([np.broadcast_to(cell[what], found.shape[1]) for cell in row["rows"]])
    middles = []
    for neuron, of in zip(found.T, counts.T, strict=True):
        missed = np.flatnonzero(neuron == 0)
        first = 0 if missed.size == 0 else missed[-1] + 1
        below = 0 if first == 0 else of[first - 1]
        middles.append(np.inf if first == len(of) else 0.5 * (below + of[first]))
    return float(np.median(middles)) / row["N"]


def _transitions(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (inputs, sparsity, _), found in grouped(_sorted(rows), "inputs", "sparsity").items():
        share = found[0]["s"] / found[0]["N"]
        cells = {"inputs": inputs, "s/N": f"{sparsity:g}", "theory, symmetric inputs": f"{samples_needed(share):.2f}"}
        made.append(cells | {method: _mean(found, method, "P") for method in METHODS} | _lasso_law(found))
    return made


def _lasso_law(rows: Rows) -> dict[str, str]:
    """What C would be in P = C (s log(N/s) + s + 1), from the plain program."""
    s, N = rows[0]["s"], rows[0]["N"]
    law = (s * np.log(N / s) + s + 1) / N
    values = [needed(row, "plain", "P") / law for row in rows]
    return {"plain, over the theorem's law": mean(values, 2) if np.all(np.isfinite(values)) else ""}


def _active(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (inputs, sparsity, _), found in grouped(_sorted(rows), "inputs", "sparsity").items():
        share = found[0]["s"] / found[0]["N"]
        cells = {"inputs": inputs, "s/N": f"{sparsity:g}", "theory": f"{l1_dimension(share):.2f}"}
        made.append(cells | {method: _mean(found, method, "active") for method in METHODS})
    return made


def _below(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (inputs, sparsity, _), found in grouped(_sorted(rows), "inputs", "sparsity").items():
        N = found[0]["N"]
        last = max((k for k, cell in enumerate(found[0]["rows"]) if cell["P"] < N), default=None)
        if last is not None:
            cells = {"inputs": inputs, "s/N": f"{sparsity:g}", "P/N": f"{found[0]['rows'][last]['P'] / N:.2f}"}
            for method in METHODS:
                cells[method] = mean([float(np.mean(row["rows"][last][method])) for row in found], 0, 100)
            made.append(cells)
    return made


def _eigenvalues(rows: Rows) -> list[dict[str, str]]:
    made = []
    for (inputs, _), found in grouped(rows, "inputs").items():
        made.append(
            {
                "inputs": inputs,
                "bound, Gaussian inputs": f"{GAUSSIAN_EIGENVALUE:.4f}",
                "least eigenvalue": mean([row["least"] for row in found], 4),
                "the next": mean([row["next"] for row in found], 4),
                "cosine of its vector with w": mean([row["along"] for row in found], 3),
                "active, %": mean([row["active"] for row in found], 1, 100),
            }
        )
    return made


def _mean(rows: Rows, method: str, what: str) -> str:
    values = [needed(row, method, what) for row in rows]
    if np.all(np.isfinite(values)):
        return mean(values, 2)
    return f"> {max(cell['P'] for cell in rows[0]['rows']) / rows[0]['N']:g}" if what == "P" else "not reached"


def _sorted(rows: Rows) -> Rows:
    order = {"gaussian": 0, "signs": 1, "second layer": 2}
    return sorted(rows, key=lambda row: (order[row["inputs"]], row["sparsity"], row["seed"]))


def plot(records: Records, folder: Path) -> list[Path]:
    """Fractions of neurons found over s/N and P/N, plain above reweighted, with the theory's curve; a PNG file."""
    rows = _sorted([row for row in records.rows if row["part"] == "transition"])
    if not rows:
        return []
    recipe = rows[-1]["recipe"]
    rows = [row for row in rows if row["recipe"] == recipe]
    kinds = list(dict.fromkeys(row["inputs"] for row in rows))

    def fill(axes: list[Any]) -> None:
        for k, panel in enumerate(axes):
            inputs, method = kinds[k % len(kinds)], METHODS[k // len(kinds)]
            _fill(panel, [row for row in rows if row["inputs"] == inputs], method)
            panel.set(title=f"{inputs}, {method}", xlabel="s/N", ylabel="P/N")

    return [draw(folder / "recovery.png", len(kinds), fill, rows=len(METHODS))]


def _fill(panel: Any, rows: Rows, method: str) -> None:
    sparsities = sorted({row["sparsity"] for row in rows})
    counts = [cell["P"] / rows[0]["N"] for cell in rows[0]["rows"]]
    shares = np.array(
        [
            np.mean([[np.mean(cell[method]) for cell in row["rows"]] for row in rows if row["sparsity"] == s], axis=0)
            for s in sparsities
        ]
    ).T
    panel.pcolormesh(_edges(sparsities), _edges(counts), shares, cmap="Greys_r", vmin=0, vmax=1, edgecolors="none")
    line = np.linspace(0.005, sparsities[-1] * 1.1, 100)
    panel.plot(line, [samples_needed(s) for s in line], color="#D55E00", lw=2, label="theory: 2 delta(s/N)")
    panel.axhline(1, color="#0072B2", lw=1, ls="--", label="P = N")
    panel.set(xlim=(0, _edges(sparsities)[-1]), ylim=(0, _edges(counts)[-1]))
    panel.set_axisbelow(True)


def _edges(middles: list[float]) -> np.ndarray:
    """Borders of cells around these points, from 0."""
    inner = [0.5 * (a + b) for a, b in itertools.pairwise(middles)]
    last = middles[-1] + (middles[-1] - inner[-1] if inner else middles[-1])
    return np.array([0.0, *inner, last])

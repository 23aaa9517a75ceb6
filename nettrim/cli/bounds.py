"""``nettrim bounds``: which labels of a last layer are guaranteed, by coresets and by pruned weights' residuals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from nettrim import files, show
from nettrim.bounds.importance import check_layer
from nettrim.cli.common import CERTIFIED, Json, app, door
from nettrim.files import Refused
from nettrim.report import to_json
from nettrim.units import align

__all__: list[str] = []

#: relative difference of Y and W^T X up to which they are the same, in single precision
SAME = 1e-3


@app.command("bounds")
def _bounds(
    layer_file: Annotated[
        Path,
        typer.Argument(
            metavar="IN.npz",
            help="A last layer: X (N x P) and its weights W (N x M) or outputs Y (M x P); if wanted labels (P).",
        ),
    ],
    solution_file: Annotated[
        Path | None, typer.Argument(metavar="OUT.npz", help="Pruned weights of it, as `nettrim solve` writes them.")
    ] = None,
    share: Annotated[float, typer.Option(help="Part of the correct labels that a coreset is to guarantee.")] = 0.5,
    delta: Annotated[float, typer.Option(help="Probability of failure, for one neuron's half and one input.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    as_json: Json = False,
) -> int:
    """Say how many labels of a last layer are guaranteed after pruning.

    With the weights W and non-negative inputs (a row of ones for a bias): coresets that guarantee a share of the
    labels, and whether the data meet the theorems' assumption. With OUT.npz: labels guaranteed by its ball alone, by
    its residuals, and those that are kept.
    """
    held = files.names(layer_file)
    if "W" not in held and (solution_file is None or "Y" not in held):
        also = "; with Y, give OUT.npz to judge it" if "Y" in held else ""
        raise Refused(f"{layer_file} lacks W, the dense weights; it holds {', '.join(held) or 'nothing'}{also}")
    arrays = files.load(layer_file, required=("X",), optional=("W", "Y", "labels"))
    X, W, labels = arrays["X"], arrays.get("W"), arrays.get("labels")
    found: dict[str, Any] = {"input": layer_file, "share": share, "delta": delta, "seed": seed}
    with door():
        if seed < 0:
            raise ValueError(f"seed must be at least 0; got {seed}")
        if W is not None:
            check_layer(W, X)
            _check_outputs(X, W, arrays.get("Y"), layer_file)
            found |= _coresets(X, W, labels, share, delta, seed)
        if solution_file is not None:
            from nettrim.bounds.last_layer import last_layer

            stored = files.load(solution_file, required=("W",), optional=("problem",))
            about = files.read_about(stored["problem"], solution_file) if "problem" in stored else {}
            Y = arrays["Y"] if "Y" in arrays else W.T @ X
            of = last_layer(X, Y, stored["W"], about.get("epsilon_abs"))
            found["pruned"] = {
                "samples": of.samples,
                "density": float(np.count_nonzero(stored["W"]) / stored["W"].size),
                "radius": of.radius,
                **{name: getattr(of, name) / of.samples for name in ("by_ball", "by_residuals", "unchanged")},
            }
    if as_json:
        print(to_json(found))
    else:
        show.print_lines(show.open_console(), _lines(found, X.shape))
    return CERTIFIED


def _check_outputs(X: np.ndarray, W: np.ndarray, Y: np.ndarray | None, path: Path) -> None:
    """Weights and outputs of a file belong together."""
    if Y is None:
        return
    if Y.shape != (W.shape[1], X.shape[1]):
        raise Refused(f"Y in {path} must be {W.shape[1]} x {X.shape[1]}, as W and X are; got {Y.shape}")
    far = float(np.linalg.norm(W.T @ X - Y) / (np.linalg.norm(Y) or 1.0))
    if not far <= SAME:
        raise Refused(
            f"Y in {path} is not W^T X: they differ by {far:.1%}. Y must be the layer's outputs without a ReLU, and a "
            "bias a row of W with a row of ones in X"
        )


def _coresets(
    X: np.ndarray, W: np.ndarray, labels: np.ndarray | None, share: float, delta: float, seed: int
) -> dict[str, Any]:
    from nettrim.bounds.importance import check_assumption, spread
    from nettrim.pruners.card import weight_rows

    rows = weight_rows(W, X, labels, share, delta=delta, seed=seed)
    positive, negative = spread(W, X)
    with np.errstate(divide="ignore"):
        factor = (positive + negative) / np.abs(positive - negative)
    return {
        "coresets": [row.to_dict() for row in rows],
        "assumption_fails_for": check_assumption(W, X).share,
        "delta_median": float(np.median(factor)),
        "delta_95": float(np.quantile(factor, 0.95)),
    }


def _lines(found: dict[str, Any], shape: tuple[int, ...]) -> list[str]:
    lines = []
    if "coresets" in found:
        failures: dict[str, list[float]] = {}
        for row in found["coresets"]:
            failures.setdefault(row["method"], []).append(row["failure"])
        cells = [("coreset", "translation", "error", "samples", "kept", "guaranteed", "unchanged", "accuracy")]
        for row in found["coresets"]:
            cells.append(
                (
                    row["method"],
                    row["translation"],
                    f"{row['asked']:.3g}",
                    f"{row['draws']:,}" if row["draws"] else "none",
                    f"{row['density']:.1%}",
                    f"{row['guaranteed']:.1%}",
                    f"{row['unchanged']:.2%}",
                    "" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
                )
            )
        which = "correct labels" if any(row["accuracy"] is not None for row in found["coresets"]) else "labels"
        lines += [
            f"{shape[0]} inputs, {shape[1]} samples: coresets to guarantee {100 * found['share']:g}% of the {which}",
            "",
            align(cells, left=2),
            "",
            f"(z+ + z-) / |z|: median {found['delta_median']:.3g}, 95 % below {found['delta_95']:.3g}. signed accounts "
            "for it in full, median Delta for that of half",
            "of the logits, unsigned not at all. The errors of a layer hold with a probability of at least "
            f"{1 - min(failures['deterministic weights']):.2g} (deterministic),",
            f"{1 - min(failures['random weights']):.2g} (random, at one input), as far as assumption A.3 does.",
            "Assumption A.3 "
            + (
                f"fails for {found['assumption_fails_for']:.1%} of the weights on these samples: the theorems do not "
                "apply to this layer as it is"
                if found["assumption_fails_for"] > 0
                else "holds on these samples"
            ),
        ]
    if "pruned" in found:
        p = found["pruned"]
        lines += [""] if lines else []
        lines.append(f"pruned weights, {p['density']:.1%} kept, of all {p['samples']} labels")
        lines.append(
            align(
                [
                    ("guaranteed", ""),
                    ("  by the ball, whatever the weights", f"{p['by_ball']:.2%}"),
                    ("  by the residuals of these weights", f"{p['by_residuals']:.2%}"),
                    ("unchanged", f"{p['unchanged']:.2%}"),
                ],
                left=1,
            )
        )
    return lines

"""Recompute the certificates of a saved model from its weights, the original model and samples."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.how import SOLVERS
from nettrim.layer import structured
from nettrim.patterns import value_for
from nettrim.settings import Settings
from nettrim.solution import certify
from nettrim.solver import Solver
from nettrim.torch.capture import Arguments, arguments_of, batches_of, digest, evaluating, split, state_digest
from nettrim.torch.fold import fold_batch_norm
from nettrim.torch.graph import find_targets, layer_of
from nettrim.torch.programs import Programs
from nettrim.torch.store import load

__all__ = ["Verified", "verify"]


@dataclass(frozen=True)
class Verified:
    """What holds of a layer in a file.

    Attributes
    ----------
    name : str
    holds : bool
        Whether the violation is within the tolerance, and the gap too where it was recomputed.
    violation, discrepancy : float
        Recomputed.
    weights, kept : int
        Counted in the file.
    claimed : float
        Violation that the file's report claims.
    status : str
        That it claims; a layer that was not solved does not hold.
    gap : float or None
        Recomputed by solving the layer again, if asked for.
    """

    name: str
    holds: bool
    violation: float
    discrepancy: float
    weights: int
    kept: int
    claimed: float
    status: str = "solved"
    gap: float | None = None


def verify(
    path: str | os.PathLike[str],
    loader: Iterable[Any],
    model: nn.Module,
    *,
    arguments: Arguments = arguments_of,
    bound: bool = False,
    memory: float = 4e9,
) -> list[Verified]:
    """Whether the pruned layers in a file meet their constraints on these samples, and (`bound`) how far from optimal.

    Of the file, the weights are used, and from its report the scheme and the tolerances; the numbers that it claims are
    only shown beside the new ones. On the samples that the model was pruned with, in the same order, a layer
    holds whose report held; on others the error is measured, not promised. Of a layer whose status is "measured", the
    report is all that was promised: it holds if its error and violation are no larger than that says.

    Parameters
    ----------
    path : path
        What `PrunedModel.save` wrote.
    loader : iterable of batches
        As given to `prune`; the part that was held out is left out again.
    model : nn.Module
        The original one, which is not changed.
    arguments : callable, optional
        As given to `prune`.
    bound : bool
        Solve every layer again for a lower bound of its l1 norm, and recompute the gap. Not of layers whose weights are
        from a later round of reweighting, whose norm is not in the file, or were searched for a density.
    memory : float
        Bytes of a layer's inputs in memory.

    Returns
    -------
    list of Verified

    Warns
    -----
    UserWarning
        The samples, or their order, are not those that the file's model was pruned with.

    Raises
    ------
    TypeError, ValueError
        The file is not one of nettrim's, does not fit the model, or was pruned from other weights; the message says.
    """
    state, about = load(path)
    settings: Mapping[str, Any] = about["settings"]
    scheme, claims = about["scheme"], {row["name"]: row for row in about["layers"]}
    batches, _ = split(batches_of(loader, settings["samples"]), settings["holdout"])
    if digest(batches, arguments) != settings.get("calibration"):
        warnings.warn(
            f"{path} was pruned with other samples, or with these in another order (does the loader shuffle?): errors "
            "on these are measured, not promised",
            UserWarning,
            stacklevel=2,
        )
    if settings.get("original", state_digest(model)) != state_digest(model):
        raise ValueError(f"{path} was pruned from other weights than the model has")
    original = copy.deepcopy(model)
    args, kwargs = arguments(batches[0])
    if about["folded"]:
        fold_batch_norm(original, args, kwargs)
    found = find_targets(original, args, kwargs, [f"re:{re.escape(name)}" for name in claims])
    missing = set(claims) - {target.name for target in found}
    if missing:
        raise ValueError(f"{path} has layers that the model does not: {', '.join(sorted(missing))}")
    pruned = copy.deepcopy(original)
    programs = Programs(original, pruned, batches, arguments, settings["penalise_bias"], memory)
    own = set(Settings.names())
    # JSON has no infinity: no limit is None there
    solving = {name: value for name, value in settings.items() if name in own and value is not None}
    gap_tol, feas_tol = settings.get("gap_tol", 1e-3), settings.get("feas_tol", 1e-4)
    rows = []
    for k, target in enumerate(found):
        module: Any = pruned.get_submodule(target.name)
        claim = claims[target.name]
        counted = settings.get("density") is not None
        l1 = settings.get("method", "auto") in SOLVERS
        slack = scheme == "cascade" and k > 0 and (not counted or l1)
        what = "gamma" if slack else "epsilon"
        # with a density, the radius is what the search for it ended at
        number = (1.0 if slack else claim["epsilon"]) if counted else value_for(settings[what], target.name, what)
        # the norm that a later round of reweighting minimised is not in the file
        bounded = bound and claim.get("round", 1) == 1 and claim["status"] != "measured" and not counted
        # the file's weights take their place after their problem has been made from what comes before
        before = layer_of(target)
        with (
            evaluating(original, pruned),
            programs.of(target, before, number, scheme == "cascade", slack) as problems,
            torch.no_grad(),
        ):
            made = list(problems)
            for what in ("weight", "bias"):
                value = state.get(f"{target.name}.{what}" if target.name else what)
                if getattr(module, what) is not None:
                    if value is None or value.shape != getattr(module, what).shape:
                        raise ValueError(f"{path} has no {what} that fits layer {target.name!r}")
                    getattr(module, what).copy_(value)
            held = layer_of(type(target)(target.name, module, target.relu, target.calls))
            found_here = []
            if settings.get("penalty") is not None:
                made = [(m, p.replace(penalty=structured(before, settings["penalty"]))) for m, p in made]
            for m, problem in made:
                dual = Solver(problem, **solving).solve().dual if bounded else None
                found_here.append(certify(problem, held.weights(m).astype(problem.dtype), dual))
        squares = sum((c.discrepancy * p.y_norm) ** 2 for c, (_, p) in zip(found_here, made, strict=True))
        size = float(np.sqrt(sum(p.y_norm**2 for _, p in made))) or 1.0
        error = float(np.sqrt(squares)) / size
        violation = max(c.violation for c in found_here)
        if counted:
            # the groups have radii of their own, of which the report has the sum
            excess = max(error - claim["epsilon"], 0.0) / max(claim["epsilon"], 1e-2)
            violation = max(excess, *(c.inequality_violation for c in found_here))
        gap = max((c.gap for c in found_here), key=abs) if bounded else None
        # as in the report of the pruning: a status that fell short stays so
        holds = (
            claim["status"] == "solved"
            and violation <= feas_tol * (1 + 1e-6)
            and (gap is None or abs(gap) <= gap_tol * (1 + 1e-6))
        )
        if claim["status"] == "measured":
            # nothing was asked for but what the report says of it
            holds = violation <= claim["violation"] * (1 + 1e-4) + 1e-6 and held.nnz <= claim["kept"]
        claimed = float("inf") if claim["violation"] is None else claim["violation"]
        status = claim["status"]
        rows.append(Verified(target.name, holds, violation, error, held.size, held.nnz, claimed, status, gap))
    return rows

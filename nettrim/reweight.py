"""Iteratively reweighted l1: sparser weights within the same constraints, certified in every round.

Derivation
----------
The l1 norm charges large weights more than small ones, which the count that it stands for does not. The sum of
log(|W_ij| + delta) comes nearer. It is concave in |W_ij|, so a tangent bounds it from above: at the weights W' of the
last round the slope is 1 / (|W'_ij| + delta), and the next round minimises

    sum_ij C_ij |W_ij|,    C_ij = 1 / (|W'_ij| + delta_j),

under the constraints of the first round: majorise, then minimise (Candes, Wakin, Boyd 2008, sections 2.2 and 2.3).
Every round is one of nettrim's programs, so its weights carry the same promises: the ball and the inequalities, and a
gap, of this round's weighted norm.

Choices: delta_j is a hundredth of the largest weight of neuron j in the last round, relative so that the scale of a
neuron does not matter; a user's own C multiplies the slopes, so that a bias that costs nothing stays free. For group
norms the group's norm takes the place of |W'_ij|, and delta is relative to the largest group.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nettrim.arrays import to_host
from nettrim.penalties import L1, Penalty
from nettrim.solution import Solution, Status
from nettrim.solver import Solver

__all__ = ["Reweighted", "check_rounds", "reweight", "slopes"]

#: delta over a neuron's largest weight; smaller ones keep a little less, but the norm's weights then differ more widely
DELTA = 0.01
#: another round must drop at least this part of the weights that are left, or it is the last
LEAST_GAIN = 0.01


@dataclass(frozen=True, repr=False)
class Reweighted(Solution):
    """The round that kept the fewest weights; a `Solution` of the program with the weights C of its norm.

    Its seconds are those of all rounds together.

    Attributes
    ----------
    C : array or None
        Weights of the norm in this round: ``certify(problem.replace(C=C), W, dual)`` recomputes the certificate.
    round : int
        The round that the weights are from, 1 for the plain program.
    rounds : list of dict
        For each round: its number from 1, status, nnz, gap, violation, discrepancy, l1 norm, seconds.
    """

    C: np.ndarray | None = None
    round: int = 1
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, round {self.round} of {len(self.rounds)})"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        return super().to_dict() | {"round": self.round, "rounds": self.rounds}


def slopes(W: np.ndarray, C: np.ndarray, penalty: Penalty = L1()) -> np.ndarray:  # noqa: B008
    """Weights of the next round's norm, in the dtype of W, on average as large as C.

    Parameters
    ----------
    W : (N, M) array
        Of the last round.
    C : array
        Of the first round, broadcastable to W.
    penalty : Penalty
        It stands for a count.
    """
    # what is free is no part of a group
    size = np.broadcast_to(penalty.size(np.where(C > 0, W, 0).astype(np.float64)), W.shape)
    # groups are compared with each other, also where each is a neuron
    largest = size.max(axis=0) if penalty.entrywise else np.full(W.shape[1], size.max())
    # a neuron without weights is treated as if its largest were a small one of the layer
    delta = DELTA * np.maximum(largest, DELTA * (largest.max() or 1.0))
    slope = 1.0 / (size + delta)
    return (C * (slope / slope.mean())).astype(W.dtype)


def reweight(solver: Solver, rounds: int) -> Reweighted:
    """Solve the solver's problem, then the rounds after it, each warm from the one before.

    Rounds end early when one drops less than a hundredth of the weights, or is not solved; `time_limit` is for all of
    them. Afterwards the solver has its problem back.

    Parameters
    ----------
    solver : Solver
    rounds : int
        At most; 1 is the plain program.

    Returns
    -------
    Reweighted
        With the status of the first round if that is not solved, and ``interrupted`` if any round was.

    Raises
    ------
    TypeError, ValueError
        `rounds` is not a whole number of at least 1.
    """
    check_rounds(rounds)
    problem, settings = solver.problem, solver.settings
    if rounds > 1 and not problem.penalty.counts:
        raise ValueError(f"rounds: reweighting needs a penalty that stands for a count; got {problem.penalty.name}")
    if rounds > 1:
        settings.require_single(f"{rounds} rounds")
    began = time.perf_counter()
    best, best_C, best_round, rows = None, problem.C, 1, []
    seconds: Counter[str] = Counter()
    try:
        for number in range(1, rounds + 1):
            C = problem.C if best is None else slopes(to_host(best.W, "W"), problem.C, problem.penalty)
            if best is not None:
                left = settings.time_limit - (time.perf_counter() - began)
                if left <= 0:
                    break
                solver.settings = replace(settings, time_limit=left)
                solver.update(C=C)
                if settings.method == "auto" and best.settings["method"] == "admm" and not problem.on_disk:
                    # the supports are known now, and shrink: what was too dense for working sets is so no more
                    solver.start(best)
            found = solver.solve()
            rows.append(_row(number, found))
            seconds.update(found.seconds)
            if best is None:
                best = found
                if found.status is not Status.SOLVED:
                    break
                continue
            if found.status is Status.INTERRUPTED:
                message = f"interrupted in round {number}; the weights are those of an earlier one, and certified"
                best = replace(best, status=Status.INTERRUPTED, message=message)
                break
            gained = 1 - found.certificate.nnz / max(best.certificate.nnz, 1)
            if found.status is Status.SOLVED and gained > 0:
                best, best_C, best_round = found, C, number
            if found.status is not Status.SOLVED or gained < LEAST_GAIN:
                break
    finally:
        solver.settings, solver.problem = settings, problem
    values = {name: getattr(best, name) for name in best.__dataclass_fields__}
    values["seconds"] = dict(seconds)
    return Reweighted(**values, C=best_C, round=best_round, rounds=rows)


def check_rounds(rounds: int) -> None:
    """That it is a whole number of at least 1."""
    if isinstance(rounds, bool) or not isinstance(rounds, (int, np.integer)):
        raise TypeError(f"rounds must be a whole number; got {rounds!r}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}")


def _row(number: int, solution: Solution) -> dict[str, Any]:
    c = solution.certificate
    return {
        **{"round": number, "status": str(solution.status), "nnz": c.nnz, "gap": c.gap, "violation": c.violation},
        "discrepancy": c.discrepancy,
        "l1": float(np.abs(to_host(solution.W, "W")).sum(dtype=np.float64)),
        "seconds": solution.seconds["total"],
    }

"""The trade-off of a layer between error and weights kept: curves over epsilon, and the epsilon for a given count.

A larger ball needs no larger norm, and in practice fewer weights, though the count is not quite monotone. All solves
share X, its factor and the products of the working sets, and start where the one before ended.

The search for a count solves log count = f(log epsilon) by secants inside a bracket, roughly at first (a gap of 1e-2)
and to the tolerance asked for near the target.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nettrim.problem import Problem
from nettrim.reweight import Reweighted, check_rounds, reweight
from nettrim.solution import Solution, Status, certify
from nettrim.solver import Solver, prepared
from nettrim.sparsity import make
from nettrim.units import align

__all__ = ["EPSILONS", "FIRST", "Path", "along", "count_of", "path", "to_count"]

#: what `path` solves for, relative to ||Y_Omega||
EPSILONS = (0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.03)
#: gap of the rough solves of a search, how near to the target they go, and how far below it the result may be
_ROUGH_GAP, _ROUGH_TOL, _TOL = 1e-2, 0.05, 0.02
#: a result of ADMM with less than this part of the target is looked for once more
_DOUBTFUL = 0.9
#: a first guess of epsilon; solves of a search at most, rough and final; the longest step, as a factor of epsilon
FIRST, _MOST_ROUGH, _MOST_FINAL, _STEP = 0.1, 12, 8, 4.0
#: iterations of a rough solve at most, and statuses after which a search goes on with larger errors
_ITERATIONS = 5000
_OUT_OF_REACH = (Status.INFEASIBLE, Status.MAX_ITERATIONS)
#: epsilons relative to ||Y_Omega|| that a search stays between
_LEAST, _MOST = 1e-4, 1.0


@dataclass(frozen=True)
class Path(Sequence[Solution]):
    """Solutions of one layer for several epsilons, the largest first.

    Attributes
    ----------
    epsilons : tuple of float
        Relative to ``||Y_Omega||_F``.
    solutions : tuple of Solution
    heldout : tuple of float or None
        `Certificate.error` of each on held-out samples; None without any.
    """

    epsilons: tuple[float, ...]
    solutions: tuple[Solution, ...]
    heldout: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.solutions)

    def __getitem__(self, index: Any) -> Any:
        return self.solutions[index]

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    @property
    def densities(self) -> tuple[float, ...]:
        """Fraction of weights kept by each."""
        return tuple(s.density for s in self.solutions)

    def table(self) -> str:
        """A line a solution."""
        titles = ("epsilon", "kept", "error", *(["held out"] if self.heldout else []), "gap", "status", "seconds")
        rows = [
            (
                *(f"{e:.2%}", f"{s.density:.2%}", f"{s.certificate.error:.2%}"),
                *([f"{self.heldout[k]:.2%}"] if self.heldout else []),
                *(f"{s.certificate.gap:.1e}", str(s.status), f"{s.seconds.get('total', 0):.2f}"),
            )
            for k, (e, s) in enumerate(zip(self.epsilons, self.solutions, strict=True))
        ]
        return align((titles, *rows), left=0)

    def __repr__(self) -> str:
        ends = f"{self.densities[0]:.2%} to {self.densities[-1]:.2%} kept"
        return f"Path({len(self)} solutions, epsilon {self.epsilons[0]:.3g} to {self.epsilons[-1]:.3g}, {ends})"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        rows = [s.to_dict() | {"epsilon": e} for e, s in zip(self.epsilons, self.solutions, strict=True)]
        if self.heldout is not None:
            rows = [row | {"heldout": h} for row, h in zip(rows, self.heldout, strict=True)]
        return {"solutions": rows}


def path(
    X: Any,
    Y: Any = None,
    epsilons: Sequence[float] = EPSILONS,
    *,
    rounds: int = 1,
    heldout: tuple[Any, Any] | None = None,
    **options: Any,
) -> Path:
    """The whole trade-off of a layer: a certified solution for each of several errors.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 500))
    >>> Y = np.maximum((rng.standard_normal((40, 6)) ** 3).T @ X, 0)
    >>> curve = nt.path(X, Y, epsilons=[0.05, 0.1, 0.2])
    >>> curve.epsilons, curve.densities[0] < curve.densities[1] < curve.densities[2]
    ((0.2, 0.1, 0.05), True)

    Parameters
    ----------
    X, Y
        As for `solve`.
    epsilons : sequence of float
        Relative to ``||Y_Omega||_F``; solved from the largest to the smallest, each from the one before.
    rounds : int
        Of reweighted l1 at each, see `sparsest`.
    heldout : (X, Y), optional
        Samples of the layer to measure errors on.
    **options
        As for `solve`; `time_limit` is for each solve.

    Returns
    -------
    Path
        Shorter than `epsilons` if it was interrupted.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    check_rounds(rounds)
    values = sorted({_radius(e) for e in epsilons}, reverse=True)
    if not values:
        raise ValueError("epsilons is empty")
    for name in ("epsilon", "epsilon_abs"):
        if name in options:
            raise TypeError(f"path takes epsilons, not {name}")
    problem, settings = prepared(X, Y, values[0], options)
    judge = None if heldout is None else Problem(*heldout, epsilon=values[0], omega=_omega(problem, options))
    return along(Solver(problem, settings), values, rounds, judge)


def along(
    solver: Solver,
    values: Sequence[float],
    rounds: int = 1,
    judge: Problem | None = None,
    progress: Callable[[float], Any] = lambda epsilon: None,
) -> Path:
    """As `path`, for a solver and errors from the largest to the smallest; `progress` is told each before its solve."""
    found = []
    if len(values) > 1:
        solver.settings.require_single(f"{len(values)} errors")
    for epsilon in values:
        progress(epsilon)
        solver.update(epsilon=epsilon)
        found.append(reweight(solver, rounds) if rounds > 1 else solver.solve())
        if found[-1].status is Status.INTERRUPTED:
            break
    outside = None if judge is None else tuple(certify(judge, s.W).error for s in found)
    return Path(tuple(values[: len(found)]), tuple(found), outside)


def to_count(solver: Solver, nnz: int, rounds: int = 1, least: float = _LEAST) -> Reweighted:
    """Least error with at most `nnz` weights, by a search over epsilon; the solver's own radius is only a first guess.

    Parameters
    ----------
    solver : Solver
    nnz : int
        Of the whole layer, everything counted that is not zero.
    rounds : int
        Of reweighted l1 in every final solve.
    least : float
        The smallest epsilon to try, relative to ``||Y_Omega||_F``.

    Returns
    -------
    Reweighted
        With at most `nnz` weights, and at least 98 % of them where the count follows epsilon so finely; its message
        gives the error. If no solve kept so few, the one with the fewest, ``solved_inaccurate``.

    Raises
    ------
    ValueError
        nnz is not between 1 and the number of weights.
    """
    problem, settings = solver.problem, solver.settings
    settings.require_single("the search for a count")
    if not 1 <= nnz <= problem.N * problem.M:
        raise ValueError(f"nnz must be between 1 and the {problem.N * problem.M} weights; got {nnz}")
    began = time.perf_counter()
    # with bounds of its own, as in a cascade, all of them are tight where the error is least, and solves are hard there
    search = _Search(nnz, min(max(least, _LEAST), _MOST / 2), shy=problem.V.size > 1)
    first = problem.epsilon / problem.y_norm if problem.y_norm > 0 else 0.0
    epsilon = first if search.least <= first < _MOST else max(FIRST, search.least)
    best: Reweighted | None = None
    fewest: Reweighted | None = None
    solves = 0

    def solve(epsilon: float, rough: bool) -> Reweighted:
        left = settings.time_limit - (time.perf_counter() - began)
        changes: dict[str, Any] = {"time_limit": max(left, 1e-9)}
        if rough:
            changes |= {"gap_tol": max(_ROUGH_GAP, settings.gap_tol), "feas_tol": max(1e-3, settings.feas_tol)}
            changes["max_iterations"] = min(_ITERATIONS, settings.max_iterations)
        solver.settings = replace(settings, **changes)
        solver.update(epsilon=epsilon)
        return reweight(solver, 1 if rough and rounds == 1 else rounds)

    try:
        for final, most, again in ((False, _MOST_ROUGH, False), (True, _MOST_FINAL, False), (True, _MOST_FINAL, True)):
            if again:
                # a first-order solve that is far from sparse, though within the tolerances, has closed the bracket
                # too early: from the sparse side once more, where every solve starts warm from the last
                if best is None or best.certificate.nnz >= _DOUBTFUL * nnz or best.settings["method"] != "admm":
                    break
                search.doubt()
                epsilon = search.next(best.settings["epsilon"], best.certificate.nnz) or epsilon
            elif final:
                search.forget()
            for _ in range(most):
                found = solve(epsilon, rough=not final)
                found = replace(found, settings=found.settings | {"epsilon": epsilon})
                solves += 1
                if found.status in _OUT_OF_REACH:
                    # so small an error is out of reach, or takes too long: a larger one
                    following = search.larger(epsilon)
                    if following is not None:
                        epsilon = following
                        continue
                count = found.certificate.nnz
                if final or found.status is not Status.SOLVED:
                    if fewest is None or count < fewest.certificate.nnz:
                        fewest = found
                    if (
                        count <= nnz
                        and found.status is Status.SOLVED
                        and (best is None or count > best.certificate.nnz)
                    ):
                        best = found
                if found.status is not Status.SOLVED:
                    break
                miss = count / nnz - 1
                if (final and -_TOL <= miss <= 0) or (not final and abs(miss) <= _ROUGH_TOL):
                    break
                following = search.next(epsilon, count)
                if following is None:
                    break
                epsilon = following
            if found.status is not Status.SOLVED:
                break
    finally:
        solver.settings, solver.problem = settings, problem
    chosen = best or fewest or found
    at = chosen.certificate.discrepancy
    message = f"{chosen.certificate.nnz} of {nnz} weights at an error of {at:.4g}, after {solves} solves"
    status = chosen.status
    if best is None and status is Status.SOLVED:
        message, status = f"no solve kept as few as {nnz}; this one has {message}", Status.SOLVED_INACCURATE
    seconds = chosen.seconds | {"total": time.perf_counter() - began}
    return replace(chosen, status=status, message=message, seconds=seconds)


class _Search:
    """Secants on log count over log epsilon, between the nearest epsilons that kept too many and too few.

    An end is tried before it is approached, since the search may go no further; the least one not where it is `shy`.
    """

    def __init__(self, target: int, least: float, shy: bool = False):
        self.least, self.shy = least, shy
        # a little less than asked for: at most so many is the promise
        self.target = math.log(target * (1 - _TOL / 2))
        self.known: list[tuple[float, float]] = []
        self.forget()

    def forget(self) -> None:
        """Counts of rough solves no longer bracket; their slope is kept."""
        # a little beyond the ends, which may be tried themselves
        self.low, self.high = math.log(self.least) - 1e-3, math.log(_MOST) + 1e-3

    def doubt(self) -> None:
        """Epsilons that kept too many, and slopes, are no longer believed."""
        self.low, self.known = math.log(self.least) - 1e-3, []

    def larger(self, epsilon: float) -> float | None:
        """After an error that is out of reach: half way to the smallest that is not."""
        self.low = max(self.low, math.log(epsilon))
        step = min((self.high - self.low) / 2, math.log(_STEP))
        return math.exp(self.low + step) if step > 1e-3 else None

    def next(self, epsilon: float, count: int) -> float | None:
        """The epsilon to try, or None when there is none left between."""
        x, y = math.log(epsilon), math.log(max(count, 0.5))
        # too many weights: a larger epsilon
        if y > self.target:
            self.low = max(self.low, x)
        else:
            self.high = min(self.high, x)
        slope = -0.7
        if self.known:
            before = min(self.known, key=lambda point: abs(point[0] - x) if point[0] != x else math.inf)
            if before[0] != x:
                slope = min((y - before[1]) / (x - before[0]), -0.1)
        self.known.append((x, y))
        step = (self.target - y) / slope
        new = x + min(max(step, -math.log(_STEP)), math.log(_STEP))
        least, most = math.log(self.least), math.log(_MOST)
        if x - least < 1e-9:
            self.low = max(self.low, least)
        elif new <= least and self.low < least and not self.shy:
            new = least
        if most - x < 1e-9:
            self.high = min(self.high, most)
        elif new >= most and self.high > most:
            new = most
        if not self.low < new < self.high:
            new = (self.low + self.high) / 2
        if self.high - self.low < 1e-4 or abs(new - x) < 1e-6:
            return None
        return math.exp(new)


def count_of(problem: Problem, density: float | None, nnz: int | None) -> int:
    """The count that a density or a count asks for, checked."""
    return make((problem.N, problem.M), density, nnz).nnz  # type: ignore[union-attr]


def _radius(epsilon: Any) -> float:
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float, np.integer, np.floating)):
        raise TypeError(f"epsilons must be numbers; got {epsilon!r}")
    if not 0 <= epsilon < np.inf:
        raise ValueError(f"epsilons must be finite and at least 0; got {epsilon}")
    return float(epsilon)


def _omega(problem: Problem, options: dict[str, Any]) -> Any:
    omega = options.get("omega", "active")
    if not isinstance(omega, str):
        raise ValueError("held-out samples need omega='active' or 'linear', not a mask of the others")
    return "linear" if problem.linear else omega

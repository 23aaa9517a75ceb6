"""The l0 search: a layer with exactly so many weights and as small an error as can be found.

minimise  || (W^T X - Y)_Omega ||^2 + || ((W^T X - V)_+)_notOmega ||^2   over W with a given pattern of sparsity

It begins at what ALPS makes of the dense weights, its target being the outputs that this loss asks for, and goes on by
exchanges of inputs and moves of counts between neurons (exchange.py) on parts of the samples, which supports depend on
little, and ends at the minimum on all of them.
The problem is combinatorial: there is no dual bound, and no promise that nothing better exists. What the result does,
its error, violations and flips, is measured on the weights returned, like any other certificate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nettrim.arrays import to_host
from nettrim.convolution import Convolution
from nettrim.exchange import improve, settle
from nettrim.measured import Measured, measured
from nettrim.operators import ReducedLinear, mirror, moments
from nettrim.problem import Problem
from nettrim.pruners.alps import alps
from nettrim.relu_loss import ReluLoss
from nettrim.relu_newton import STEPS, TOL
from nettrim.settings import Settings
from nettrim.sparsity import NofM, Sparsity, Unstructured, make

__all__ = ["EFFORTS", "l0", "search"]


class Stage(NamedTuple):
    """Rounds of exchanges on one of so many parts of the samples, and inputs that they try for each neuron."""

    parts: int
    rounds: int
    tried: int


#: what is done before the minimum on all samples
EFFORTS = {
    "fast": (Stage(8, 1, 32),),
    "default": (Stage(8, 2, 32), Stage(4, 2, 64)),
    "thorough": (Stage(8, 2, 32), Stage(4, 4, 64), Stage(1, 10, 64)),
}
#: samples for each weight of a neuron and for each input that a part has at least: with fewer its exchanges overfit
_LEAST_SAMPLES, _LEAST_FOR_INPUTS = 30, 2
#: Newton's tolerance and steps on a part: its minimum is not that of all samples, and supports hardly depend on it
_ROUGH, _FEW = 1e-2, 2


def l0(
    X: Any,
    Y: Any,
    W: Any,
    *,
    density: float | None = None,
    nnz: int | None = None,
    per: str = "layer",
    pattern: Sparsity | str | None = None,
    bias: bool = False,
    omega: Any = "active",
    V: Any = 0.0,
    heldout: tuple[Any, Any] | None = None,
    effort: str = "default",
    starts: Sequence[Any] = ("dense",),
    time_limit: float = math.inf,
    n_threads: int | None = None,
    dtype: Any = None,
) -> Measured:
    """A layer with a given number of weights and a small error, by a search without a dual bound.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((40, 800)), rng.standard_normal((40, 8)) ** 3
    >>> Y = np.maximum(W.T @ X, 0)
    >>> plain = nt.solve(X, Y, density=0.2)
    >>> sol = nt.l0(X, Y, W, density=0.2)
    >>> sol.certificate.nnz, sol.certificate.error < 0.8 * plain.certificate.error
    (64, True)

    Parameters
    ----------
    X : (N, P) array or Convolution
        Layer inputs, a column a sample.
    Y : (M, P) array
        Layer outputs.
    W : (N, M) array
        The dense weights.
    density, nnz, per, pattern
        How many weights stay, as in `nettrim.sparsity.make`: a fraction or a number of the layer (or, with
        ``per="neuron"``, of each neuron), or a pattern such as "2:4".
    bias : bool
        Whether the last row of W is a bias, which stays and does not count.
    omega, V
        As in `Problem`.
    heldout : (X, Y), optional
        Samples to measure the error on, which the search does not see. Of several starts the best there is returned.
    effort : {"fast", "default", "thorough"}
        Rounds of exchanges: one on an eighth of the samples; two on an eighth and two on a quarter; or two, four, and
        up to ten on all. The first two end with weights near their minimum on all samples.
    starts : sequence
        Where to begin: "dense" for ALPS from the dense weights, or (N, M) arrays with at most as many non-zeros as
        asked for, such as the weights of `sparsest`. The best result counts: on X and Y, or on `heldout` if
        given. That of an array is no worse on X and Y than the array where there is no `heldout`.
    time_limit : float
        Seconds after which no further round begins. The start, a round and the minimum on all samples come in any case.
    n_threads : int, optional
    dtype : {None, numpy.float32, numpy.float64}

    Returns
    -------
    Measured
        With exactly as many non-zeros as asked for (fewer only where a start had fewer, or a weight is zero by chance).

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    # checked as those of `solve` are
    Settings(time_limit=time_limit, n_threads=n_threads)
    problem = Problem(X, Y, epsilon_abs=0.0, omega=omega, V=V, dtype=dtype)
    W = to_host(W, "W")
    if W.shape != (problem.N, problem.M):
        raise ValueError(f"W must be {problem.N} x {problem.M}; got {W.shape}")
    if W.dtype.kind != "f":
        raise TypeError(f"W must be of a floating dtype; got {W.dtype}")
    if not np.isfinite(W).all():
        raise ValueError("W contains NaN or inf")
    judge = None
    if heldout is not None:
        if not isinstance(omega, str):
            raise ValueError("held-out samples need omega='active' or 'linear', not a mask of the others")
        if not isinstance(heldout, (tuple, list)) or len(heldout) != 2:
            raise TypeError(f"heldout must be a pair (X, Y); got {type(heldout).__name__}")
        judge = Problem(*heldout, epsilon_abs=0.0, omega=omega, dtype=problem.dtype)
        if (judge.N, judge.M) != (problem.N, problem.M):
            shape = f"{problem.N} and {problem.M}"
            raise ValueError(f"heldout must have {shape} rows, as X and Y have; got {judge.N} and {judge.M}")
    counted = (problem.N - bias, problem.M)
    chosen = make(counted, density, nnz, per, pattern) if pattern is None or isinstance(pattern, str) else pattern
    chosen.count(counted)
    return search(
        problem, W, chosen, bias=bias, heldout=judge, effort=effort, starts=starts, time_limit=time_limit,
        n_threads=n_threads,
    )  # fmt: skip


def search(
    problem: Problem,
    W: np.ndarray,
    pattern: Sparsity,
    *,
    bias: bool = False,
    heldout: Problem | None = None,
    effort: str = "default",
    starts: Sequence[Any] = ("dense",),
    time_limit: float = math.inf,
    n_threads: int | None = None,
    progress: Callable[[dict[str, Any]], Any] | None = None,
) -> Measured:
    """As `l0`, for a problem and a pattern of its weights without the bias; `progress` has the row of every round."""
    began = time.perf_counter()
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}; got {effort!r}")
    if isinstance(starts, str) or not len(starts):
        raise TypeError(f"starts must be a sequence of 'dense' and arrays; got {starts!r}")
    W = W.astype(problem.dtype, copy=False)
    free = np.zeros(problem.N, bool)
    free[problem.N - bias :] = True
    whole = _reduced(problem)
    loss = ReluLoss(whole, n_threads)
    support = pattern.count((problem.N - bias, problem.M)) / problem.M
    stages = _stages(whole, loss, EFFORTS[effort], support)
    results: list[Measured] = []
    for start in starts:
        now, name = _begin(stages[0][0].problem, stages[0][0], W, pattern, bias, start)
        about: dict[str, Any] = {"effort": effort, "start": name, "pattern": str(pattern)}
        if name == "given":
            # on all samples, what a part of them makes of it may be worse
            same = settle(loss, now, free)
            results.append(measured(problem, same, heldout, "l0", time.perf_counter() - began, _MESSAGE, [], **about))
        history: list[dict[str, Any]] = []
        message = _MESSAGE

        def note(row: dict[str, Any], history: list[dict[str, Any]] = history) -> None:
            history.append(row | {"round": len(history) + 1, "seconds": time.perf_counter() - began})
            if progress is not None:
                progress(history[-1])

        for stage, todo in stages:
            left = time_limit - (time.perf_counter() - began)
            if history and left <= 0:
                message = f"{_MESSAGE}; ended early by time_limit"
                break
            now, _ = improve(
                stage,
                now,
                free=free,
                groups=_groups(pattern, problem.N),
                movable=isinstance(pattern, Unstructured),
                rounds=todo.rounds,
                tried=todo.tried,
                tol=TOL if stage is loss else _ROUGH,
                steps=STEPS if stage is loss else _FEW,
                time_limit=left,
                progress=note,
            )
        if history[-1]["samples"] < loss.shape[2]:
            now = settle(loss, now, free)
        seconds = time.perf_counter() - began
        results.append(measured(problem, now, heldout, "l0", seconds, message, history, **about))
    return min(results, key=_score)


_MESSAGE = "found by a search: errors are measured, and nothing proves that no better weights exist"


def _score(found: Measured) -> float:
    return found.certificate.error if found.heldout is None else found.heldout


def _reduced(problem: Problem) -> Problem:
    """A linear layer as the small problem of its moments, whose loss differs by a constant; others as they are."""
    if not problem.linear or (problem.gram is None and problem.P <= problem.N):
        return problem
    X, Y, _ = ReducedLinear.from_gram(problem.moments())
    return Problem(X, Y, epsilon_abs=0.0, omega="linear", dtype=problem.dtype)


def _stages(problem: Problem, loss: ReluLoss, stages: Sequence[Stage], support: float) -> list[tuple[ReluLoss, Stage]]:
    """The stages with their samples, for so many weights a neuron; where there are too few for a part, on all."""
    found: list[tuple[ReluLoss, Stage]] = []
    for stage in stages:
        part = None if stage.parts == 1 else _part(problem, stage.parts, support)
        found.append((loss if part is None else ReluLoss(part, loss.n_threads), stage))
    if found[0][0] is loss:
        return [(loss, stages[-1]._replace(rounds=max(stage.rounds for stage in stages)))]
    return found


def _part(problem: Problem, parts: int, support: float) -> Problem | None:
    """One of the parts of the samples, the same at every call; None where that is too few for the weights' supports."""
    count = max(problem.P // parts, math.ceil(_LEAST_SAMPLES * support), _LEAST_FOR_INPUTS * problem.N)
    if problem.mask is None or isinstance(problem.X, Convolution) or count > problem.P // 2:
        return None
    chosen = np.sort(np.random.default_rng(0).permutation(problem.P)[:count])
    V = problem.V if problem.V.size == 1 else problem.V[:, chosen]
    return Problem(
        np.ascontiguousarray(problem.X[:, chosen]),
        np.ascontiguousarray(problem.Y[:, chosen]),
        epsilon_abs=0.0,
        omega=problem.mask[:, chosen],
        V=V,
        dtype=problem.dtype,
    )


def _begin(
    problem: Problem, loss: ReluLoss, W: np.ndarray, pattern: Sparsity, bias: bool, start: Any
) -> tuple[np.ndarray, str]:
    """Weights of the pattern to begin at."""
    inputs = problem.N - bias
    if not isinstance(start, str):
        given = to_host(start, "starts")
        if given.shape != W.shape:
            raise ValueError(f"an array of starts must be {W.shape[0]} x {W.shape[1]}; got {given.shape}")
        kept = (given[:inputs] != 0) & pattern.mask(np.abs(given[:inputs]))
        if kept.sum() < np.count_nonzero(given[:inputs]):
            raise ValueError("an array of starts has more non-zeros than are asked for, or others")
        return given.astype(problem.dtype), "given"
    if start != "dense":
        raise ValueError(f"starts must be 'dense' or arrays; got {start!r}")
    H = loss.operator.gram() if isinstance(problem.X, Convolution) else mirror(moments(problem.X))
    # what this loss asks the outputs of the dense weights to be: their own, but for the residuals
    with loss.workers() as pool:
        R = loss.outputs(pool, W)
        loss.residuals(pool, R, np.arange(problem.M))
        right = H @ W - loss.adjoint(pool, R)
    now = W.copy()
    fixed = H[:inputs, inputs:] @ W[inputs:]
    now[:inputs] = alps(W[:inputs].astype(np.float64), H[:inputs, :inputs], pattern, right[:inputs] - fixed)
    return now, "dense"


def _groups(pattern: Sparsity, N: int) -> np.ndarray:
    """Inputs that may be exchanged for each other have the same number."""
    return np.arange(N) // pattern.m if isinstance(pattern, NofM) else np.zeros(N, np.int64)

"""Blocks of neurons as tasks, where each has a ball of its own (program (4.7) of Aghasi et al. 2020).

A ball over all neurons does: how much of its radius a neuron may use is known only when the others are solved. That
program is cut by samples, or solved on one machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from nettrim.convolution import Convolution
from nettrim.distributed.cluster import connect, workers
from nettrim.distributed.fan import Job, fan_out
from nettrim.problem import Problem
from nettrim.settings import Settings
from nettrim.solution import Solution, Status, certify
from nettrim.solver import Solver, prepared

__all__ = ["solve_neurons"]

#: the worst of the blocks' statuses is that of the layer
_ORDER = (
    *(Status.SOLVED, Status.SOLVED_INACCURATE, Status.MAX_ITERATIONS, Status.TIME_LIMIT, Status.INTERRUPTED),
    Status.INFEASIBLE,
)


def solve_neurons(
    X: Any,
    Y: Any,
    epsilon: float | None = None,
    *,
    client: Any = "processes",
    blocks: int | None = None,
    **options: Any,
) -> Solution:
    """One layer with a ball for each neuron, its neurons in blocks over the workers of a cluster.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((20, 500))
    >>> Y = np.maximum(rng.standard_normal((20, 6)).T @ X, 0)
    >>> nt.distributed.solve_neurons(X, Y, epsilon=0.05, client="threads").status
    <Status.SOLVED: 'solved'>

    Parameters
    ----------
    X, Y, epsilon
        As for `nettrim.solve`, in memory: every block is sent X.
    client : str or distributed.Client
        As for `solve`.
    blocks : int, optional
        Default two for each worker, so that the last ones are not waited for so long.
    **options
        As for `nettrim.solve`; `neuronwise` is understood.

    Returns
    -------
    Solution
        Its certificate is that of the whole layer, recomputed here. Its seconds are those of all blocks together, but
        for the total.

    Raises
    ------
    TypeError, ValueError
        Wrong input, or a penalty that couples the neurons; the message names the argument.
    RuntimeError
        No workers are left, or the scheduler is gone.
    """
    began = time.perf_counter()
    if options.pop("neuronwise", True) is not True:
        raise ValueError("neuronwise must be True: a common ball couples the neurons")
    problem, settings = prepared(X, Y, epsilon, options | {"neuronwise": True})
    settings = settings or Settings()
    if problem.chunked or problem.gram is not None or isinstance(problem.X, Convolution):
        raise TypeError("X and Y must be arrays in memory here")
    if not problem.plain:
        raise ValueError(f"penalty must be l1: {problem.penalty.name} may couple the neurons")
    with connect(client) as there:
        count = 2 * len(workers(there)) if blocks is None else blocks
        cuts = _cuts(problem.M, count)
        jobs = _jobs(problem, settings, cuts)
        found = {job.index: solution for job, solution in fan_out(there, jobs, settings.callback, settings.n_threads)}
    parts = [found[k] for k in range(len(cuts))]
    W = np.hstack([part.W for part in parts])
    duals = [part.dual for part in parts]
    # of moments they have a column for each neuron, else a row
    join = np.hstack if problem.compact else np.vstack
    dual = None if any(d is None for d in duals) else join(duals)
    worst = max(range(len(parts)), key=lambda k: _ORDER.index(parts[k].status))
    seconds = {name: sum(part.seconds.get(name, 0.0) for part in parts) for name in parts[0].seconds}
    message = parts[worst].message
    if parts[worst].status is not Status.SOLVED:
        message = f"neurons {cuts[worst].start} to {cuts[worst].stop - 1}: {message}"
    return replace(
        parts[worst],
        W=W,
        dual=dual,
        certificate=certify(problem, W, dual),
        iterations=max(part.iterations for part in parts),
        seconds=seconds | {"total": time.perf_counter() - began},
        message=message,
        ray=None,
        smallest_epsilon=None,
        history=[],
    )


def _cuts(M: int, count: Any) -> list[slice]:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"blocks must be a whole number of at least 1; got {count!r}")
    count = min(count, M)
    return [slice(k * M // count, (k + 1) * M // count) for k in range(count)]


def _jobs(problem: Problem, settings: Settings, cuts: list[slice]) -> Iterator[Job]:
    values = settings.to_dict()
    del values["n_threads"]
    for k, m in enumerate(cuts):
        # each neuron keeps its radius
        radius = problem.epsilon * math.sqrt((m.stop - m.start) / problem.M)
        part = Problem(
            problem.X,
            problem.Y[m],
            epsilon_abs=radius,
            omega="linear" if problem.linear else problem.mask[m],
            V=float(problem.V[0, 0]) if problem.V.size == 1 else problem.V[m],
            C=problem.C if problem.C.shape[1] == 1 else problem.C[:, m],
            neuronwise=True,
        )
        yield Job(f"nettrim-neurons-{m.start}-{m.stop}", k, _solve, (part,), values)


def _solve(problem: Problem, **values: Any) -> Solution:
    return Solver(problem, **values).solve()

"""Solver: owns the device arrays, the cached factor and the warm state, and turns iterates into certified solutions."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np

from nettrim import backends
from nettrim.admm import Factor, Loop, State
from nettrim.coarse import Start
from nettrim.interrupt import Interrupt
from nettrim.operators import Dense, Gram, ReducedLinear
from nettrim.problem import Problem
from nettrim.run import Run
from nettrim.settings import Settings
from nettrim.solution import Solution
from nettrim.threads import limit
from nettrim.working_set import WorkingSet

__all__ = ["Solver", "solve"]

#: float operations of an iteration below which BLAS threads only wait for each other (about 0.5 ms of one core)
SMALL = 3e7


class Solver:
    """Solves one problem, and variations of it that share X, with one factor and warm starts.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((20, 500))
    >>> Y = np.maximum(rng.standard_normal((20, 5)).T @ X, 0)
    >>> solver = nt.Solver(nt.Problem(X, Y, epsilon=0.05))
    >>> solver.solve().status
    <Status.SOLVED: 'solved'>
    >>> solver.update(epsilon=0.2).solve().density < 0.9
    True

    Parameters
    ----------
    problem : Problem
    settings : Settings, optional
        How to solve.
    **values
        Or the fields of `Settings` as keywords.

    Raises
    ------
    TypeError, ValueError
        An unknown or wrong setting.
    """

    def __init__(self, problem: Problem, settings: Settings | None = None, **values: Any):
        if not isinstance(problem, Problem):
            raise TypeError(f"problem must be a nettrim.Problem; got {type(problem).__name__}")
        if settings is not None and not isinstance(settings, Settings):
            raise TypeError(f"settings must be a nettrim.Settings; got {type(settings).__name__}")
        if settings is not None and values:
            raise TypeError("give either settings or keywords, not both")
        self.settings = settings or Settings.make(**values)
        self.problem = problem
        self.backend = backends.get(self.settings.backend, self.settings.n_threads)
        if self.settings.method == "working_set" and not self.backend.on_host:
            raise ValueError(f'method="working_set" runs on the CPU: backend={self.backend.name!r} has "admm" only')
        self._operator: Dense | None = None
        self._factor: Factor | None = None
        self._source: Any = None
        self._reduced: ReducedLinear | None = None
        self._state: State | None = None
        self._start: Start | None = None
        self._working: WorkingSet | None = None

    def update(self, **changes: Any) -> Solver:
        """Change the problem (`Problem.replace`) and return the solver; the next `solve` starts warm.

        The factor is kept unless X changes, the state unless the shape of the problem does.
        """
        self.problem = self.problem.replace(**changes)
        return self

    def solve(self) -> Solution:
        """Certified solution of the present problem. Never raises for lack of convergence: see the status."""
        began = time.perf_counter()
        threads = self.settings.n_threads
        if threads is None and self._iteration_flops() < SMALL:
            threads = 1
        limits = limit(threads) if threads is not None else contextlib.nullcontext()
        with limits, Interrupt() as interrupt:
            return Run(self, began, interrupt).solution()

    def _iteration_flops(self) -> float:
        p = self.problem
        columns = p.N if p.compact else p.P
        return 4.0 * p.N * p.M * columns + 2.0 * p.N**2 * p.M

    # what a run needs, built when first needed and kept

    def _data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """(X, Y, mask, radii) that ADMM works on: the samples, or the square root of a linear layer's moments."""
        p = self.problem
        if not p.compact:
            return p.X, p.Y, p.mask, p.radii
        moments = p.moments()
        if self._reduced is None or self._source is not moments:
            self._reduced = ReducedLinear.from_gram(moments)
        X, Y, floor = self._reduced
        spent = floor if p.neuronwise else np.array([floor.sum()])
        return X, Y, None, np.sqrt(np.maximum(p.radii**2 - spent, 0))

    def _loop(self) -> Loop:
        p, be = self.problem, self.backend
        X, Y, mask, radii = self._data()
        source = p.moments() if p.compact else p.X
        if self._factor is None or self._source is not source or self._operator.X.dtype != p.dtype:
            self._operator = Dense(X.astype(p.dtype, copy=False), be, p.dtype)
            self._factor = Factor(self._operator, be, p.dtype)
            self._source, self._state, self._start, self._working = source, None, None, None
        if mask is None:
            mask = np.ones(Y.shape, bool)
        arrays = (be.asarray(Y, p.dtype), be.asarray(mask, bool), be.asarray(p.V, p.dtype), be.asarray(p.C, p.dtype))
        loop = Loop(self._operator, *arrays, radii, self._factor, be)
        if self._state is not None and self._state.T.shape != Y.shape:
            self._state = None
        if self._working is not None and not np.array_equal(self._working.loop.mask, mask):
            self._working = None
        if self._start is not None and self._start.W.shape[1] != len(Y):
            self._start = None
        return loop


def solve(X: Any, Y: Any = None, epsilon: float | None = None, **options: Any) -> Solution:
    """Sparsest (l1) weights that reproduce a layer's outputs within a stated error, with a certificate.

    Parameters
    ----------
    X : (N, P) array or Gram
        Layer inputs, a column a sample (a row of ones for the bias), or the second moments of a linear layer.
    Y : (M, P) array
        Layer outputs; left out when X is a Gram.
    epsilon : float
        Error relative to ``||Y_Omega||_F``; `epsilon_abs` is the same in the units of Y.
    **options
        Parameters of `Problem` (omega, V, C, neuronwise, dtype, epsilon_abs) and of `Settings` (gap_tol, ...).

    Returns
    -------
    Solution

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.

    Examples
    --------
    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((50, 400))
    >>> Y = np.maximum(rng.standard_normal((50, 8)).T @ X, 0)
    >>> sol = nt.solve(X, Y, epsilon=0.1)
    >>> sol.status
    <Status.SOLVED: 'solved'>
    >>> sol.certificate.gap <= 1e-3 and sol.certificate.violation <= 1e-4
    True
    """
    known = {"epsilon_abs", "omega", "V", "C", "neuronwise", "dtype"}
    about = {name: options.pop(name) for name in known & set(options)}
    # a misspelled option is named before what it leaves missing
    settings = Settings.make(**options)
    if isinstance(X, Gram):
        if Y is not None:
            raise TypeError("a Gram already holds the outputs: leave Y out")
        refused = sorted({"omega", "V"} & set(about))
        if refused:
            raise TypeError(f"{', '.join(refused)} cannot be given with a Gram: it stands for a linear layer")
        problem = Problem.from_gram(X, epsilon, **about)
    else:
        if Y is None:
            raise TypeError("Y is missing: the layer's outputs, M x P")
        problem = Problem(X, Y, epsilon, **about)
    return Solver(problem, settings).solve()

"""Solver: owns the device arrays, the cached factor and the warm state, and turns iterates into certified solutions."""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import Any

import numpy as np

from nettrim import backends
from nettrim.admm import Factor, Loop, State
from nettrim.arrays import to_host
from nettrim.chunked import Chunked
from nettrim.coarse import Start, start_at
from nettrim.convolution import Convolution
from nettrim.device import choose
from nettrim.diskplan import DiskPlan
from nettrim.diskplan import plan as plan_on_disk
from nettrim.fromdisk import FromDisk, Parts
from nettrim.interrupt import Interrupt
from nettrim.memory import ADVICE, SLOTS, MemoryPlan, plan
from nettrim.operators import Dense, Gram, KnownGram, ReducedLinear
from nettrim.problem import Problem
from nettrim.run import Run
from nettrim.samples import Resident, Samples, operator_of
from nettrim.settings import Settings
from nettrim.solution import Solution
from nettrim.streamed import Streamed
from nettrim.threads import blas_threads, limit
from nettrim.unfolding import Unfolding
from nettrim.working_set import WorkingSet

__all__ = ["Solver", "prepared"]

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
        name = self.settings.backend
        if name == "auto":
            name = choose(problem, self.settings) if problem.plain and not problem.on_disk else "numba"
        self.backend = backends.get(name, self.settings.n_threads)
        if self.settings.method == "working_set" and not self.backend.on_host:
            raise ValueError(f'method="working_set" runs on the CPU: backend={self.backend.name!r} has "admm" only')
        self._check()
        self._dense: Dense | Unfolding | None = None
        self._samples: Samples | None = None
        self._plan: MemoryPlan | None = None
        self._disk_plan: DiskPlan | None = None
        self._plan_of: tuple[Any, ...] = ()
        self._factor: Factor | None = None
        self._source: Any = None
        self._dtype: Any = None
        self._reduced: ReducedLinear | None = None
        self._state: State | None = None
        self._start: Start | None = None
        self._given: tuple[np.ndarray, np.ndarray | None] | None = None
        self._working: WorkingSet | None = None
        # whether working sets were left for what they cost: then so they would be again
        self._costly = False
        self._penalty = problem.penalty

    def update(self, **changes: Any) -> Solver:
        """Change the problem (`Problem.replace`) and return the solver; the next `solve` starts warm.

        The factor is kept unless X changes, the state unless the shape of the problem does.
        """
        self.problem = self.problem.replace(**changes)
        self._costly = self._costly and not {"X", "Y", "omega"} & set(changes)
        self._check()
        return self

    def _check(self) -> None:
        """That neither samples on disk nor another penalty than l1 are asked of a method or a device without them."""
        if self.problem.on_disk:
            if self.settings.method == "working_set":
                raise ValueError(
                    'method="working_set" needs the samples in memory; those of a Chunked X or Y take "admm" or "auto"'
                )
            if not self.backend.on_host:
                raise ValueError(f"samples on disk are solved for on the CPU; got backend={self.backend.name!r}")
        if self.problem.plain:
            return
        name = self.problem.penalty.name
        if self.settings.method == "working_set":
            raise ValueError(f'method="working_set" is for the l1 norm; the penalty {name} needs "admm" or "auto"')
        if not self.backend.on_host:
            raise ValueError(f"the penalty {name} runs on the CPU; got backend={self.backend.name!r}")

    def start(self, solution: Solution) -> Solver:
        """Let the next `solve` begin at an earlier solution, of this problem or of one like it; returns the solver.

        Parameters
        ----------
        solution : Solution
            Its W must be N x M. Its multipliers are used where they are of this problem's form, M x P.

        Raises
        ------
        TypeError
            Not a Solution.
        ValueError
            W has another shape.
        """
        if not isinstance(solution, Solution):
            raise TypeError(f"solution must be a nettrim.Solution; got {type(solution).__name__}")
        p = self.problem
        W = to_host(solution.W, "solution.W")
        if W.shape != (p.N, p.M):
            raise ValueError(f"solution.W must be {p.N} x {p.M}; got {W.shape}")
        dual = None if solution.dual is None else to_host(solution.dual, "solution.dual")
        self._given = W, dual if not p.compact and dual is not None and dual.shape == (p.M, p.P) else None
        return self

    def memory_plan(self) -> MemoryPlan | DiskPlan | None:
        """How `solve` will lay the samples out on the GPU, or between memory and disk, with a ``table()`` to print.

        None where all of them are in the host's memory.

        Raises
        ------
        MemoryError
            The problem does not fit, not even with streamed samples.
        """
        if self.problem.on_disk:
            return self._plan_disk() if self.problem.shards is None else None
        X, Y, _, _ = self._data()
        return self._plan_memory(X.shape[0], *Y.shape)

    def solve(self) -> Solution:
        """Certified solution of the present problem. Never raises for lack of convergence: see the status.

        Raises
        ------
        MemoryError
            The problem does not fit on the GPU, or samples on disk not into `memory`, not even with the smallest
            buffers; the message holds the memory plan.
        OSError
            Samples cannot be read, or the disk has too little space for the state.
        """
        began = time.perf_counter()
        threads = self.settings.n_threads
        if threads is None and self._iteration_flops() < SMALL:
            threads = 1
        limits = limit(threads) if threads is not None else contextlib.nullcontext()
        with limits, Interrupt() as interrupt:
            try:
                return Run(self, began, interrupt).solution()
            except BaseException as error:
                made = self._plan
                self._release()
                # a half-made iterate is no start, and what is on the device is the caller's again
                if self._state is not None and isinstance(self._state.T, Parts):
                    # the frames of the error may hold it for long
                    self._state.T.close()
                self._forget()
                if made is not None and self.backend.out_of_memory(error):
                    # the frames hold device arrays
                    traceback.clear_frames(error.__traceback__)
                    raise MemoryError(_explain(error, made)) from None
                raise
            finally:
                self._release()

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
        if self._source is not source or self._dtype != p.dtype:
            self._forget()
            self._source, self._dtype = source, p.dtype
        if mask is None:
            mask = np.broadcast_to(True, Y.shape)
        here = p.on_disk and p.shards is None
        self._disk_plan = self._plan_disk() if here else None
        self._plan = None if p.on_disk else self._plan_memory(X.shape[0], *Y.shape)
        if here:
            samples: Samples = self._from_disk()
        elif p.on_disk:
            samples = self._elsewhere()
        elif self._plan and self._plan.streamed:
            samples = self._streamed(X, Y, mask)
        else:
            samples = self._resident(X, Y, mask)
        self._samples = samples
        loop = Loop(samples, be.asarray(p.C, p.dtype), radii, self._factor, p.penalty)
        if self._state is not None and self._penalty != p.penalty:
            # the old multipliers are of another size
            self._state = None
        self._penalty = p.penalty
        if self._state is not None and not samples.fits(self._state.T):
            self._state = None
        if self._working is not None and not np.array_equal(self._working.loop.samples.mask, mask):
            self._working = None
        if self._start is not None and self._start.W.shape[1] != len(Y):
            self._start = None
        if self._given is not None:
            W, dual = self._given
            self._given = self._start = self._state = None
            if be.on_host and p.plain and self.settings.method != "admm" and not p.on_disk:
                self._start = start_at(loop, W.astype(p.dtype, copy=False), dual)
            else:
                self._state = loop.start_at(W, dual)
        return loop

    def _resident(self, X: np.ndarray, Y: np.ndarray, mask: np.ndarray) -> Resident:
        p, be = self.problem, self.backend
        if self._dense is None:
            self._dense = operator_of(X, be, p.dtype, self._shared("X", None))
            self._factor = Factor(self._dense, be, p.dtype)
        V = be.rowwise(p.V, p.dtype)
        return Resident(self._dense, be.rowwise(self._shared("Y", Y), p.dtype), be.rowwise(mask, bool), V, be)

    def _streamed(self, X: np.ndarray, Y: np.ndarray, mask: np.ndarray) -> Streamed:
        p, be, plan = self.problem, self.backend, self._plan
        threads = self.settings.n_threads or blas_threads()
        samples = Streamed(X, Y, mask, p.V, be, p.dtype, plan.kept, plan.width, SLOTS, threads)
        if self._factor is None:
            self._factor = Factor(KnownGram(X.shape, samples.gram()), be, p.dtype)
        return samples

    def _from_disk(self) -> FromDisk:
        p, be = self.problem, self.backend
        samples = FromDisk(p, be, self._disk_plan, self.settings.scratch)
        if self._factor is None:
            self._factor = Factor(KnownGram((p.N, p.P), samples.gram()), be, p.dtype)
        return samples

    def _elsewhere(self) -> Samples:
        p = self.problem
        samples = p.shards.samples(p, self.backend)
        if self._factor is None:
            self._factor = Factor(KnownGram((p.N, p.P), samples.gram()), self.backend, p.dtype)
        return samples

    def _plan_disk(self) -> DiskPlan:
        p = self.problem
        arrays: dict[str, Any] = {"X": p.X, "Y": p.Y, "omega": p.mask, "V": p.V}
        given = {name: a for name, a in arrays.items() if isinstance(a, Chunked)}
        return plan_on_disk(
            p.N,
            p.M,
            p.P,
            p.dtype.itemsize,
            self.settings.memory_bytes,
            stored={name: a.sample_bytes for name, a in given.items()},
            copies=max((a.sample_bytes for a in given.values() if a.copies), default=0),
            numpy=self.backend.name == "numpy",
        )

    def _shared(self, name: str, a: np.ndarray | None) -> Any:
        """The caller's own array on the device, if it is there in the working dtype, else `a`."""
        given = None if self.problem.compact else self.problem._on_gpu.get(name)
        shared = None if given is None else self.backend.share(given)
        return a if shared is None or shared.dtype != self.problem.dtype else shared

    def _plan_memory(self, N: int, M: int, P: int) -> MemoryPlan | None:
        """The layout of the samples on the device; None on the host. A layout once made is kept with the state."""
        p, memory = self.problem, self.backend.memory()
        if memory is None:
            return None
        size = N, M, P, p.dtype.itemsize, p.V.size > 1
        if self._plan is None or self._plan_of != size:
            X, Y = (self._shared(name, None) for name in ("X", "Y"))
            there = 0
            if self._dense is not None or (X is not None and (X.flags.c_contiguous or X.flags.f_contiguous)):
                there += N * p.dtype.itemsize
            # the passes need it row-major: another one is copied
            if Y is not None and Y.flags.c_contiguous:
                there += M * p.dtype.itemsize
            device, free = memory
            limit = self.settings.device_memory
            self._plan = None
            chunked = isinstance(p.X, Convolution) and not p.compact
            self._plan = plan(
                N, M, P, p.dtype.itemsize, free, limit, device, p.V.size > 1, there, chunked, self.backend.block_bytes
            )
            self._plan_of = size
        return self._plan

    def _release(self) -> None:
        """Let go of the samples, once nothing is being copied to or from them."""
        if self._samples is not None:
            self._samples.drain()
            self._samples = None

    def _forget(self) -> None:
        """Let go of all that was made for an earlier problem."""
        self._source = self._dense = self._factor = self._samples = self._plan = None
        self._state = self._start = self._working = None


def _explain(error: BaseException, made: MemoryPlan) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{first}\n{made.table()}\n{ADVICE} Or set device_memory: samples that exceed it are streamed."


def prepared(X: Any, Y: Any, epsilon: float | None, options: dict[str, Any]) -> tuple[Problem, Settings]:
    """Problem and settings from the arguments of `solve`."""
    names = {"epsilon_abs", "omega", "V", "C", "penalty", "neuronwise", "dtype"} & set(options)
    about = {name: options[name] for name in names}
    # a misspelled option is named before what it leaves missing
    settings = Settings.make(**{name: value for name, value in options.items() if name not in names})
    if isinstance(X, Gram):
        if Y is not None:
            raise TypeError("a Gram already holds the outputs: leave Y out")
        refused = sorted({"omega", "V"} & names)
        if refused:
            raise TypeError(f"{', '.join(refused)} cannot be given with a Gram: it stands for a linear layer")
        return Problem.from_gram(X, epsilon, **about), settings
    if Y is None:
        raise TypeError("Y is missing: the layer's outputs, M x P")
    return Problem(X, Y, epsilon, **about), settings

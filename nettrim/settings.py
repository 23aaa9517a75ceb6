"""Settings of a solve: frozen, checked on construction, unknown names refused."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nettrim import backends
from nettrim.units import to_bytes

__all__ = ["Settings"]

METHODS = ("auto", "admm", "working_set")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to solve; the problem itself is never in here.

    Parameters
    ----------
    method : {"auto", "admm", "working_set"}
        "admm" is first-order, with a cost per iteration that is known beforehand; "working_set" is exact, with a cost
        that grows with the supports. "auto" takes working sets unless the first supports are so dense, or epsilon so
        small (but not 0), that ADMM is quicker. Working sets hand over to ADMM, with a log message, where they cannot
        go on.
    backend : {"auto", "numba", "numpy", "cupy"}
        Device and kernels. "cupy" is ADMM on a GPU, without the polish, and needs CuPy. "auto" is "numba" unless a
        problem takes seconds, a GPU is there, and by the speed that both show it would be done sooner on the GPU.
    gap_tol : float
        Relative duality gap at which the problem counts as solved (default 1e-3). Below 1e-5 use float64 data.
    feas_tol : float
        Relative violation at which the problem counts as solved (default 1e-4); see `Certificate` for the scales.
    max_iterations : int
        ADMM iterations (default 20000), or rounds of working sets (60 at most).
    memory_limit : float
        Bytes that the matrices of the working sets may take (default 2 GiB); beyond it ADMM goes on.
    device_memory : float or None
        Bytes of a GPU's memory that a solve may take (default: what is free, less a reserve). Samples that do not fit
        are streamed from the host.
    memory : float or str
        Bytes that a solve with `Chunked` samples may take, beside what the process takes already, or text such as
        "4GB" (default 2 GB). More of the samples, and of the solver's state, then stay in memory.
    scratch : str or path, optional
        Folder for the part of the state that does not fit into `memory`, as large as Y at most; default the system's
        for temporary files. Nothing is left there.
    checkpoint : str or path, optional
        Folder in which ADMM keeps its state, so that the same solve goes on there when it has been stopped, by
        whatever; made if need be, and deleted when the problem is solved. Working sets keep nothing.
    checkpoint_every : float
        Seconds between two checkpoints (default 60).
    time_limit : float
        Wall-clock seconds for `solve`, setup included (default inf); checked between iterations.
    n_threads : int or None
        Threads of BLAS and of the element-wise passes during the solve, restored afterwards. None: as many as BLAS uses
        now, but one for a problem so small that threads would only wait for each other.
    check_every : int
        ADMM: iterations between two looks at the certificate (default 20).
    relaxation : float
        ADMM: over-relaxation of the step, in (0, 2); default 1.9.
    adapt : bool
        ADMM: adapt the two penalties on iteration counts (default True).
    polish : bool
        ADMM: finish a nearly solved problem by a Newton step on its support (default True).
    callback : callable or None
        Called at every check (every round) with a dict (iteration, objective, dual_bound, gap, seconds, and violation
        with working sets); a true result stops.
    verbose : bool
        Print a line per check.

    Raises
    ------
    TypeError, ValueError
        A wrong type or value; the message names the setting.
    """

    method: str = "auto"
    backend: str = "auto"
    gap_tol: float = 1e-3
    feas_tol: float = 1e-4
    max_iterations: int = 20000
    memory_limit: float = 2.0 * 2**30
    device_memory: float | None = None
    memory: float | str = 2e9
    scratch: str | None = None
    checkpoint: str | None = None
    checkpoint_every: float = 60.0
    time_limit: float = np.inf
    n_threads: int | None = None
    check_every: int = 20
    relaxation: float = 1.9
    adapt: bool = True
    polish: bool = True
    callback: Callable[[dict[str, Any]], Any] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("backend", self.backend, backends.NAMES)
        _number("gap_tol", self.gap_tol, 0, 1)
        _number("feas_tol", self.feas_tol, 0, 1)
        _number("time_limit", self.time_limit, 0, np.inf, closed=True)
        _number("memory_limit", self.memory_limit, 0, np.inf, closed=True)
        if self.device_memory is not None:
            _number("device_memory", self.device_memory, 0, np.inf)
        # frozen: what is given in words is kept as a number, and a path as text
        object.__setattr__(self, "memory", to_bytes(self.memory))
        _number("memory", self.memory, 0, np.inf)
        if self.scratch is not None:
            if not os.path.isdir(self.scratch):
                raise ValueError(f"scratch must be an existing folder; got {os.fspath(self.scratch)!r}")
            object.__setattr__(self, "scratch", os.fspath(self.scratch))
        if self.checkpoint is not None:
            if os.path.exists(self.checkpoint) and not os.path.isdir(self.checkpoint):
                raise ValueError(f"checkpoint must be a folder; got {os.fspath(self.checkpoint)!r}")
            object.__setattr__(self, "checkpoint", os.fspath(self.checkpoint))
            if self.method == "working_set":
                raise ValueError('checkpoint is for ADMM: method="working_set" has no state to keep')
        _number("checkpoint_every", self.checkpoint_every, 0, np.inf, closed=True)
        _number("relaxation", self.relaxation, 0, 2)
        _integer("max_iterations", self.max_iterations)
        _integer("check_every", self.check_every)
        if self.n_threads is not None:
            _integer("n_threads", self.n_threads)
        for name in ("adapt", "polish", "verbose"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False; got {getattr(self, name)!r}")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback must be callable; got {type(self.callback).__name__}")

    @property
    def memory_bytes(self) -> float:
        """`memory` as a number."""
        return to_bytes(self.memory)

    def require_single(self, what: str) -> None:
        """Refuse a checkpoint for what takes several solves.

        Raises
        ------
        ValueError
            There is one.
        """
        if self.checkpoint is not None:
            raise ValueError(f"checkpoint is for a single solve, and {what} take several; got {self.checkpoint!r}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def make(cls, **values: Any) -> Settings:
        """Settings from keywords.

        Raises
        ------
        TypeError
            An unknown name (the message suggests the nearest known one) or a wrong type.
        """
        for name in values:
            if name not in cls.names():
                near = difflib.get_close_matches(name, cls.names(), n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(cls.names())}"
                raise TypeError(f"unknown setting {name!r}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the callback is left out."""
        return {name: getattr(self, name) for name in self.names() if name != "callback"}


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _number(name: str, value: Any, low: float, high: float, closed: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    inside = low <= value <= high if closed else low < value < high
    if not inside:
        raise ValueError(f"{name} must be {'' if closed else 'strictly '}between {low} and {high}; got {value}")


def _integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")

"""A layer's program whose samples are on the workers of a cluster, and its solution in one call."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np

from nettrim.arrays import place_of
from nettrim.chunked import Chunked
from nettrim.convolution import Convolution
from nettrim.distributed.cluster import connect, workers
from nettrim.distributed.shard import Piece
from nettrim.distributed.shards import Shards
from nettrim.distributed.source import source_of
from nettrim.fingerprint import block_of
from nettrim.operators import Gram
from nettrim.problem import Problem, _bound, _flag, _working_dtype, warn
from nettrim.settings import Settings
from nettrim.solution import Solution
from nettrim.solver import Solver
from nettrim.survey import Survey
from nettrim.units import to_bytes

__all__ = ["ShardedProblem", "solve"]


class _Elsewhere:
    """In the place of a matrix: its shape and dtype."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype):
        self.shape, self.dtype = shape, dtype

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


class ShardedProblem(Problem):
    """As `nettrim.Problem`, with the samples on the workers of a cluster: each reads its own, and keeps their state.

    For `nettrim.Solver` and `nettrim.certify`; `solve` does all of it in one call. Used as a context it frees the
    workers at the end.

    Parameters
    ----------
    X, Y : (N, P) and (M, P) array or Chunked
        Of what is in a file its path is sent to the workers, which must be able to open it. An array in memory is cut
        and sent.
    epsilon, epsilon_abs, omega, V, C, penalty, neuronwise, dtype
        As for `Problem`; `omega` and `V` also as `Chunked`.
    client : distributed.Client
    shards : int, optional
        Parts to cut the samples into; default one for each worker that is there. Results depend on it by rounding, and
        on nothing else of the cluster.
    memory : float or str
        Bytes that a worker may take for each of its shards; beyond them it reads samples again in every pass, as with
        `Chunked`.
    scratch : str, optional
        Folder on the workers for state that exceeds `memory`.
    backend : {"auto", "numba", "numpy", "cupy"}
        Of the workers. "cupy" needs room for a shard on a worker's GPU (not yet run on one).
    threads : int, optional
        Of a worker's arithmetic; default as many as Dask gives it.

    Raises
    ------
    TypeError, ValueError
        As for `Problem`; a worker cannot open a file.
    RuntimeError
        There are no workers.
    """

    def __init__(
        self,
        X: Any,
        Y: Any,
        epsilon: float | None = None,
        *,
        client: Any,
        epsilon_abs: float | None = None,
        omega: Any = "active",
        V: Any = 0.0,
        C: Any = 1.0,
        penalty: Any = None,
        neuronwise: bool = False,
        dtype: Any = None,
        shards: int | None = None,
        memory: float | str = 2e9,
        scratch: str | os.PathLike[str] | None = None,
        backend: str = "auto",
        threads: int | None = None,
    ):
        if isinstance(X, Convolution):
            raise TypeError("X must be a matrix here: a Convolution is not cut into shards")
        X, Y = (a if isinstance(a, Chunked) else Chunked(np.asarray(a)) for a in (X, Y))
        if X.shape[1] != Y.shape[1]:
            raise ValueError(f"X and Y must have one column per sample: X is {X.shape}, Y is {Y.shape}")
        self.dtype = _working_dtype(dtype, X, Y)
        self.N, self.M, self.P = X.shape[0], Y.shape[0], X.shape[1]
        self.gram = self._moments = self.products = None
        self._place, self._on_gpu = place_of(None), {}
        self.X, self.Y = _Elsewhere(X.shape, self.dtype), _Elsewhere(Y.shape, self.dtype)
        # what is cheap to refuse is refused before anything is sent
        self._set_penalty(C, penalty)
        if not isinstance(omega, str) and not isinstance(omega, Chunked):
            omega = Chunked(np.asarray(omega))
        if not isinstance(V, Chunked) and np.size(V) > 1:
            V = Chunked(np.asarray(V, self.dtype))
        self.V = _Elsewhere(Y.shape, self.dtype) if isinstance(V, Chunked) else _bound(V, Y.shape, self.dtype)
        for name, a in (("omega", omega), ("V", V)):
            if isinstance(a, Chunked) and a.shape != Y.shape:
                raise ValueError(f"{name} must have the shape of Y, {Y.shape}; got {a.shape}")
        cuts = _cuts(self.P, len(workers(client)) if shards is None else shards)
        pieces = [
            Piece(
                source_of(X, "X", s.start, s.stop),
                source_of(Y, "Y", s.start, s.stop),
                omega if isinstance(omega, str) else source_of(omega, "omega", s.start, s.stop),
                source_of(V, "V", s.start, s.stop) if isinstance(V, Chunked) else float(self.V[0, 0]),
                str(self.dtype),
                s.start,
                backend,
                to_bytes(memory),
                None if scratch is None else os.fspath(scratch),
            )
            for s in cuts
        ]
        self.shards = Shards(client, pieces, cuts, threads)
        self._survey = _together(self.shards.surveys)
        self.linear = (isinstance(omega, str) and omega == "linear") or self._survey.inactive == 0
        self.mask = None if isinstance(omega, str) or self.linear else _Elsewhere(Y.shape, np.dtype(bool))
        if isinstance(omega, str) and omega == "active" and self._survey.lowest < 0:
            warn("Y has negative entries, which no ReLU puts out: they count as inactive, W^T X <= V")
        self._row_norms = np.sqrt(self._survey.squares)
        self.neuronwise = _flag(neuronwise, "neuronwise")
        self._set_radius(epsilon, epsilon_abs)

    def replace(self, **changes: Any) -> Problem:
        """As `Problem.replace`, of what is not of the size of the samples.

        Raises
        ------
        TypeError
            X, Y, omega, V or dtype is to change.
        """
        fixed = sorted({"X", "Y", "omega", "V", "dtype"} & set(changes))
        if fixed:
            raise TypeError(f"cannot change {', '.join(fixed)} of a problem on workers: make another one")
        return super().replace(**changes)

    def moments(self) -> Gram:
        """Second moments of a linear layer, summed over the shards on the first call."""
        if self._moments is None:
            gram = Gram(self.N, self.M)
            gram._XX, gram.XY, gram.YY = (np.asfortranarray(a) for a in self.shards.total("moments").sums)
            gram.P = self.P
            self._moments = gram
        return self._moments

    def close(self) -> None:
        """Free the workers."""
        self.shards.close()

    def __enter__(self) -> ShardedProblem:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def solve(
    X: Any,
    Y: Any,
    epsilon: float | None = None,
    *,
    client: Any = "processes",
    **options: Any,
) -> Solution:
    """One layer over the workers of a cluster: each has some of the samples. As `nettrim.solve` up to rounding.

    >>> import numpy as np, nettrim as nt, nettrim.distributed
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((20, 500))
    >>> Y = np.maximum(rng.standard_normal((20, 5)).T @ X, 0)
    >>> nt.distributed.solve(X, Y, epsilon=0.05, client="threads", shards=2).status
    <Status.SOLVED: 'solved'>

    Parameters
    ----------
    X, Y, epsilon
        As for `ShardedProblem`.
    client : str or distributed.Client
        The cluster: ``"processes"`` or ``"threads"`` of this machine, a scheduler's address, or a client.
    **options
        Of `ShardedProblem` and of `Settings`; ``memory``, ``scratch`` and ``backend`` are those of the workers. With
        ``checkpoint``, a folder that all workers can write to, a solve whose cluster was lost goes on there.

    Returns
    -------
    Solution
        Without multipliers: they are as large as Y. The dual bound has been computed from them, by the workers.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    RuntimeError
        All workers were lost, or the scheduler.
    """
    own = ("memory", "scratch", "backend")
    names = [name for name in Settings.names() if name not in own]
    settings = Settings.make(**{name: options.pop(name) for name in names if name in options})
    with connect(client) as there, ShardedProblem(X, Y, epsilon, client=there, **options) as problem:
        return Solver(problem, settings).solve()


def _cuts(P: int, count: int) -> list[slice]:
    """Samples in so many parts, at the ends of blocks that fingerprints are made of."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"shards must be a whole number of at least 1; got {count!r}")
    block = block_of(P)
    blocks = -(-P // block)
    edges = sorted({min(k * blocks // count * block, P) for k in range(count)} | {P})
    return [slice(a, b) for a, b in pairwise(edges)]


def _together(surveys: list[Survey]) -> Survey:
    return Survey(
        sum((s.squares for s in surveys[1:]), surveys[0].squares),
        min(s.lowest for s in surveys),
        sum(s.inactive for s in surveys),
        sum(s.forced for s in surveys),
        all(s.zero_allowed for s in surveys),
    )

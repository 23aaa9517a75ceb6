"""A layer's samples when they exceed the memory: those that fit stay there, the others are read as they are needed.

Samples are cut into chunks. A thread reads the next chunk into one buffer while another is worked on, and writes the
state of the one before back to a scratch file where it does not fit into memory either: disk and arithmetic work at
the same time, since reading, writing, products and passes all let the other thread go on. Chunks are worked on in
their order, so that runs repeat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.backends.gemm import gemm
from nettrim.chunked import Chunked
from nettrim.diskplan import SLOTS, DiskPlan
from nettrim.operators import mirror, moments
from nettrim.problem import Problem
from nettrim.scratch import Scratch
from nettrim.sweeps import Chunk, Sweeps

__all__ = ["FromDisk", "Parts"]

Array = Any


@dataclass
class Parts:
    """The state: for each chunk an array, or its place in the scratch file."""

    layout: tuple[Any, ...]
    parts: list[Any]
    file: Scratch | None

    def close(self) -> None:
        """Give the scratch file back; the state is lost."""
        if self.file is not None:
            self.file.close()


class FromDisk(Sweeps):
    """Samples of a problem on disk; see :class:`nettrim.samples.Samples` for the functions.

    Parameters
    ----------
    problem : Problem
        `Problem.on_disk`.
    backend : Backend
        On the host.
    plan : DiskPlan
    folder : str, optional
        Of the scratch file.
    """

    def __init__(self, problem: Problem, backend: Any, plan: DiskPlan, folder: str | None = None):
        self.backend, self.dtype = backend, problem.dtype
        self.shape = (problem.N, problem.M, problem.P)
        self._problem, self._folder, width = problem, folder, plan.width
        self._slices = [slice(p, min(p + width, problem.P)) for p in range(0, problem.P, width)]
        count, full = len(self._slices), -(-plan.kept // width)
        # spread evenly: while those that stay are worked on, the others arrive; the last may be narrower
        chosen = {i * (count - 1) // full for i in range(full)} if full < count else set(range(count))
        self._in_memory = plan.scratch == 0
        self._kept = {i: self._load(i) for i in sorted(chosen)}
        self._streamed = [i for i in range(count) if i not in self._kept]
        self._layout = self.shape, width, tuple(self._kept), self._in_memory
        slots = min(SLOTS, len(self._streamed))
        self._slot = {i: k % slots for k, i in enumerate(self._streamed)}
        self._buffers = [self._empty(width) for _ in range(slots)]
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="nettrim-disk")

    # what ADMM asks for

    def state(self) -> Parts:
        M, size = self.shape[1], 0
        parts: list[Any] = []
        for i, s in enumerate(self._slices):
            if self._in_memory or i in self._kept:
                parts.append(np.zeros((M, s.stop - s.start), self.dtype))
            else:
                parts.append(size)
                size += M * (s.stop - s.start) * self.dtype.itemsize
        return Parts(self._layout, parts, Scratch(size, self._folder) if size else None)

    def fits(self, T: Any) -> bool:
        return isinstance(T, Parts) and T.layout == self._layout

    def drain(self) -> None:
        """Every sweep waits for what it has read and written."""

    def to_host(self, T: Parts) -> np.ndarray:
        return _State(self, T, 1.0)[:, slice(0, self.shape[2])]

    def multiplier(self, T: Parts, rho: float) -> Chunked:
        return Chunked(_State(self, T, rho))

    def load(self, T: Parts, values: Any) -> Array:
        total, places = self._weights(), iter(self._slices)

        def work(c: Chunk) -> None:
            c.T[...] = values[:, next(places)]
            self._product(c.X, c.T.T, total, 1.0, 1.0)

        self._sweep(work, "X", T=T, write=True)
        return total

    def save(self, T: Parts, writer: Any) -> list[dict[str, Any]]:
        return [writer.write(0, _State(self, T, 1.0))]

    def sizes(self) -> np.ndarray:
        # known since the problem was made
        return self._problem._row_norms

    def gram(self) -> np.ndarray:
        """X X^T in float64."""
        N = self.shape[0]
        total = [np.zeros((N, N), order="F")]

        def work(c: Chunk) -> None:
            total[0] = moments(c.X, total[0])

        self._sweep(work, "X")
        return mirror(total[0])

    # the chunks, one after the other

    def _sweep(self, work: Callable[[Chunk], Any], *names: str, T: Parts | None = None, write: bool = False) -> None:
        reads: dict[int, Future[Any]] = {}
        writes: deque[Future[Any]] = deque()
        upcoming = iter(self._streamed)

        def ahead() -> None:
            i = next(upcoming, None)
            if i is not None:
                reads[i] = self._disk.submit(self._fill, i, names, T)

        try:
            for _ in self._buffers:
                ahead()
            for i in range(len(self._slices)):
                here = None if T is None or isinstance(T.parts[i], int) else T.parts[i]
                if i in self._kept:
                    chunk = self._kept[i]
                    chunk.T = here
                    work(chunk)
                    chunk.T = None
                    continue
                chunk = reads.pop(i).result()
                if here is not None:
                    chunk.T = here
                work(chunk)
                if write and T is not None and here is None:
                    writes.append(self._disk.submit(T.file.write, T.parts[i], chunk.T))
                # one thread, in order: the buffer is filled again after its state has been written
                ahead()
                while writes and writes[0].done():
                    writes.popleft().result()
            while writes:
                writes.popleft().result()
        except BaseException:
            # whatever happened, Ctrl-C included: nothing may be read or written after its buffer is gone
            pending = [*reads.values(), *writes]
            for future in pending:
                future.cancel()
            wait(pending)
            raise

    def _fill(self, i: int, names: tuple[str, ...], T: Parts | None) -> Chunk:
        """The chunk, in its buffer, read from disk."""
        s = self._slices[i]
        chunk = self._part(self._buffers[self._slot[i]], s.stop - s.start)
        self._read(chunk, s, names)
        if T is not None and isinstance(T.parts[i], int):
            T.file.read(T.parts[i], chunk.T)
        return chunk

    def _read(self, chunk: Chunk, s: slice, names: tuple[str, ...]) -> None:
        p: Any = self._problem
        if "X" in names:
            p.X.read(s, chunk.X)
        if "Y" in names:
            p.Y.read(s, chunk.Y)
        if "mask" in names:
            if p.linear:
                chunk.mask.fill(True)
            elif p.mask is None:
                np.greater(chunk.Y, 0, out=chunk.mask)
            else:
                p.mask.read(s, chunk.mask)
        if "V" in names and p.V.size > 1:
            p.V.read(s, chunk.V)

    def _load(self, i: int) -> Chunk:
        """A chunk that stays."""
        s = self._slices[i]
        width = s.stop - s.start
        chunk = self._part(self._empty(width, state=False), width)
        self._read(chunk, s, ("X", "Y", "mask", "V"))
        return chunk

    def _empty(self, width: int, state: bool = True) -> dict[str, np.ndarray]:
        """Memory of a chunk."""
        N, M, _ = self.shape
        rows = {"X": N, "Y": M, "mask": M}
        if self._problem.V.size > 1:
            rows["V"] = M
        if state and not self._in_memory:
            rows["T"] = M
        return {n: np.empty(rows[n] * width, bool if n == "mask" else self.dtype) for n in rows}

    def _part(self, buffers: dict[str, np.ndarray], width: int) -> Chunk:
        """The arrays of a chunk of `width` samples in its memory."""
        N, M, _ = self.shape

        def part(name: str, rows: int) -> Any:
            return buffers[name][: rows * width].reshape(rows, width) if name in buffers else None

        # products take X in any order: it stays as it is on disk. The passes go along rows of the others
        by_sample = self._problem.X.by_sample
        X = buffers["X"][: N * width].reshape(width, N).T if by_sample else part("X", N)
        V = part("V", M) if "V" in buffers else self._problem.V
        return Chunk(X, part("Y", M), part("mask", M), V, part("T", M))

    def _product(self, A: Array, B: Array, out: Array = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
        if self.backend.name != "numba":
            # NumPy's products let other threads go on
            return self.backend.product(A, B, out, alpha, beta)
        if out is None:
            out = np.empty((A.shape[0], B.shape[1]), self.dtype)
        gemm(A, B, out, alpha, beta)
        return out


class _State:
    """rho T as an array of which parts are read, valid as long as T does not change."""

    def __init__(self, samples: FromDisk, T: Parts, rho: float):
        self.shape, self.dtype = samples.shape[1:], samples.dtype
        self._slices, self._T, self._rho = samples._slices, T, samples.dtype.type(rho)
        # the last part that was read: whoever goes through the samples asks for pieces of it
        self._last, self._values = -1, np.empty((0, 0))

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        first, last, width = key[1].start, key[1].stop, self._slices[0].stop
        out = np.empty((self.shape[0], last - first), self.dtype)
        for i in range(first // width, -(-last // width)):
            s = self._slices[i]
            a, b = max(first, s.start), min(last, s.stop)
            np.multiply(self._part(i)[:, a - s.start : b - s.start], self._rho, out=out[:, a - first : b - first])
        return out

    def _part(self, i: int) -> np.ndarray:
        part = self._T.parts[i]
        if not isinstance(part, int):
            return part
        if self._last != i:
            s = self._slices[i]
            self._values = np.empty((self.shape[0], s.stop - s.start), self.dtype)
            self._T.file.read(part, self._values)
            self._last = i
        return self._values

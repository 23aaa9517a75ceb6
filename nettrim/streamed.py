"""A layer's samples when they exceed the device's memory: those that fit stay there, the others come and go.

Samples are cut into chunks. Some stay on the device, spread evenly, so that while one of them is worked on others can
arrive; the rest go through a few buffers, the state of a chunk up and down again. Copies run on streams of their own
(:class:`nettrim.backends.base.Transfers`), so that they hide behind the products where these take longer: a chunk needs
2 N M flops a sample for the 4 (N + 2 M) + M bytes that it moves.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.sweeps import Chunk, Sweeps

__all__ = ["Streamed"]

Array = Any

#: bytes of a copy on the host that are worth a thread
THREAD_BYTES = 4 << 20


@dataclass
class Split:
    """The state: an array a chunk, on the device for those that stay, else page-locked on the host."""

    layout: tuple[Any, ...]
    parts: list[Array]


class Streamed(Sweeps):
    """As many samples on the device as the plan says; see :class:`nettrim.samples.Samples` for the functions.

    Parameters
    ----------
    X : (N, P) array
        On the host, of any strides; a memory map works.
    Y : (M, P) array
    mask : (M, P) bool array
    V : (M, P) or (1, 1) array
    backend : Backend
    dtype : numpy dtype
    kept, width : int
        Samples that stay, a multiple of `width`, and samples of a chunk.
    slots : int
        Buffers for the chunks that do not stay.
    threads : int
        Threads that copy to page-locked memory.

    Raises
    ------
    ValueError
        `kept` leaves nothing to stream, or is not a multiple of `width`.
    """

    def __init__(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        mask: np.ndarray,
        V: np.ndarray,
        backend: Any,
        dtype: Any,
        kept: int,
        width: int,
        slots: int,
        threads: int = 1,
    ):
        if kept % width or not 0 <= kept < X.shape[1]:
            raise ValueError(f"kept must be a multiple of {width} below {X.shape[1]}; got {kept}")
        self.backend, self.dtype = backend, np.dtype(dtype)
        self.shape = (X.shape[0], *Y.shape)
        P = X.shape[1]
        self._slices = [slice(p, min(p + width, P)) for p in range(0, P, width)]
        self._host = {"X": X, "Y": Y, "mask": mask}
        self._one_bound = None if V.size > 1 else backend.asarray(V, dtype)
        if V.size > 1:
            self._host["V"] = V
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nettrim-copy") if threads > 1 else None
        # the last chunk may be narrower, and is never kept
        count, full = len(self._slices), kept // width
        chosen = {i * (count - 1) // full for i in range(full)} if full else set()
        self._kept = {i: self._load(i) for i in sorted(chosen)}
        self._streamed = [i for i in range(count) if i not in self._kept]
        self._layout = self.shape, width, tuple(self._kept)
        slots = min(slots, len(self._streamed))
        self._slot = {i: k % slots for k, i in enumerate(self._streamed)}
        self._transfers = backend.transfers(slots)
        rows = {name: a.shape[0] for name, a in self._host.items()} | {"T": self.shape[1]}
        types = {name: np.dtype(bool) if name == "mask" else self.dtype for name in rows}
        self._buffers = [{n: backend.zeros((rows[n] * width,), types[n]) for n in rows} for _ in range(slots)]
        self._staging = [
            {n: self._transfers.host_buffer(rows[n] * width, types[n]) for n in self._host} for _ in range(slots)
        ]

        for slot in range(slots):
            # what the device has still to do to this memory comes before the first copy to it
            self._transfers.used(slot)

    # what ADMM asks for

    def state(self) -> Split:
        M = self.shape[1]
        parts = []
        for i, s in enumerate(self._slices):
            shape = (M, s.stop - s.start)
            if i in self._kept:
                parts.append(self.backend.zeros(shape, self.dtype))
            else:
                parts.append(self._transfers.host_buffer(M * shape[1], self.dtype).reshape(shape))
                parts[-1].fill(0)
        return Split(self._layout, parts)

    def fits(self, T: Any) -> bool:
        return isinstance(T, Split) and T.layout == self._layout

    def drain(self) -> None:
        self._transfers.drain()

    def to_host(self, T: Split) -> np.ndarray:
        self.drain()
        whole = np.empty(self.shape[1:], self.dtype)
        for i, s in enumerate(self._slices):
            whole[:, s] = self.backend.to_host(T.parts[i]) if i in self._kept else T.parts[i]
        return whole

    def multiplier(self, T: Split, rho: float) -> np.ndarray:
        return self.to_host(T) * self.dtype.type(rho)

    def load(self, T: Split, values: Any) -> Array:
        self.drain()
        for i, s in enumerate(self._slices):
            part = np.ascontiguousarray(values[:, s])
            if i in self._kept:
                T.parts[i][...] = self.backend.asarray(part, self.dtype)
            else:
                T.parts[i][...] = part
        total = self._weights()
        self._sweep(lambda c: self.backend.product(c.X, c.T.T, total, 1.0, 1.0), "X", T=T)
        return total

    def save(self, T: Split, writer: Any) -> list[dict[str, Any]]:
        return [writer.write(0, self.to_host(T))]

    def sizes(self) -> np.ndarray:
        squares: list[Array] = []

        def work(c: Chunk) -> None:
            zero = self.backend.zeros(c.Y.shape, self.dtype)
            squares.append(self.backend.ball_norms(zero, c.Y, c.mask))

        self._sweep(work, "Y", "mask")
        return np.sqrt(self.backend.to_host(sum(squares[1:], squares[0])))

    def gram(self) -> np.ndarray:
        """X X^T in float64 on the host."""
        N = self.shape[0]
        total = self.backend.zeros((N, N), np.dtype(np.float64))
        self._sweep(lambda c: self.backend.add_moments(total, c.X), "X")
        return self.backend.to_host(total)

    # the chunks, one after the other

    def _sweep(self, work: Callable[[Chunk], Any], *names: str, T: Split | None = None, write: bool = False) -> None:
        """Call `work` with every chunk, with the arrays called `names` and, if given, the state; later ones arrive."""
        transfers, slots = self._transfers, len(self._buffers)
        wanted = [n for n in names if n in self._host]
        try:
            for i in self._streamed[:slots]:
                self._send(i, wanted, T)
            upcoming = iter(self._streamed[slots:])
            for i in range(len(self._slices)):
                if i in self._kept:
                    chunk = self._kept[i]
                    chunk.T = None if T is None else T.parts[i]
                    work(chunk)
                    chunk.T = None
                    continue
                slot = self._slot[i]
                transfers.arrived(slot)
                chunk = self._chunk(i)
                work(chunk)
                transfers.used(slot)
                if write and T is not None:
                    transfers.receive(slot, T.parts[i], chunk.T)
                following = next(upcoming, None)
                if following is not None:
                    self._send(following, wanted, T)
        except BaseException:
            # whatever happened, Ctrl-C included: no copy may outlive the buffers it reads or writes
            transfers.drain()
            raise

    def _send(self, i: int, names: list[str], T: Split | None) -> None:
        """Begin to copy a chunk to its buffer, by way of page-locked memory."""
        slot, s = self._slot[i], self._slices[i]
        self._transfers.reusable(slot)
        chunk, pairs = self._chunk(i), []
        for name in names:
            source = self._host[name][:, s]
            staged = self._staging[slot][name][: source.size].reshape(source.shape)
            self._copy(staged, source)
            pairs.append((getattr(chunk, name), staged))
        if T is not None:
            pairs.append((chunk.T, T.parts[i]))
        self._transfers.send(slot, pairs)

    def _chunk(self, i: int) -> Chunk:
        """The chunk's arrays in its buffer."""
        s, buffers = self._slices[i], self._buffers[self._slot[i]]
        (N, M, _), width = self.shape, s.stop - s.start

        def part(name: str, rows: int) -> Array:
            return buffers[name][: rows * width].reshape((rows, width))

        V = part("V", M) if self._one_bound is None else self._one_bound
        return Chunk(part("X", N), part("Y", M), part("mask", M), V, part("T", M))

    def _load(self, i: int) -> Chunk:
        """A chunk that stays."""
        s, be = self._slices[i], self.backend
        arrays = {
            name: be.asarray(np.ascontiguousarray(a[:, s]), bool if name == "mask" else self.dtype)
            for name, a in self._host.items()
        }
        return Chunk(arrays["X"], arrays["Y"], arrays["mask"], arrays.get("V", self._one_bound))

    def _copy(self, to: np.ndarray, source: np.ndarray) -> None:
        """Copy rows by as many threads as pay."""
        blocks = min(self._threads, len(to), 1 + to.nbytes // THREAD_BYTES)
        if blocks == 1:
            np.copyto(to, source)
            return
        rows = [slice(b * len(to) // blocks, (b + 1) * len(to) // blocks) for b in range(blocks)]
        list(self._pool.map(lambda r: np.copyto(to[r], source[r]), rows))

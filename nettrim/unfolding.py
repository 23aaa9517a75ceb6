"""The operator of a convolution layer: products with X, whose columns are unfolded a chunk at a time.

A chunk of windows is copied into a buffer that the cache holds, and multiplied by BLAS there. A product with all of X
would have to read it from memory, which makes up for most of the copying.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from nettrim.backends.gemm import gemm, syrk
from nettrim.convolution import Box, Convolution
from nettrim.operators import mirror
from nettrim.threads import limit

__all__ = ["Unfolding"]

#: bytes of unfolded windows at a time: more leaves the cache, less is a product of too few columns
_CHUNK_BYTES = 4 << 20
#: but at least as many columns, or adjoint and Gram matrix would be read and written for too little
_LEAST_COLUMNS = 512
#: bytes of unfolded windows below which they are not worth a thread (about a millisecond; starting one is a tenth)
_THREAD_BYTES = 4 << 20
#: bytes of rows of X that are unfolded at a time for their products
_ROWS_BYTES = 8 << 20


class Unfolding(Convolution):
    """Products with a convolution's X on a backend of the host. Methods may be called from several threads.

    Parameters
    ----------
    convolution : Convolution
    backend : Backend
    dtype : numpy dtype

    Raises
    ------
    ValueError
        The backend is on a GPU.
    """

    #: the system of the factor is X X^T + r I, whatever N and P are
    direct = True
    #: a row-major X, which there is not
    rows = None

    def __init__(self, convolution: Convolution, backend: Any, dtype: Any):
        # its checks are done, and its images on the host
        self.__dict__.update(convolution.astype(dtype).__dict__)
        if not backend.on_host:
            raise ValueError(f"backend must be on the host; got {backend.name}")
        self._numba = backend.name == "numba"
        # the numba backend's product copies an output whose rows are not adjacent
        self._product: Callable[..., Any] = gemm if self._numba else backend.product
        self._n_threads = getattr(backend, "n_threads", 1)

    def forward(self, W: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
        """``out <- alpha W^T X + beta out``; W is N x M, out is M x P with contiguous rows."""

        def work(boxes: list[Box]) -> None:
            for box, X in self._chunks(boxes, self.dtype):
                self._product(W.T, X, out[:, box.columns], alpha, beta)

        self._run(work)
        return out

    def adjoint(self, Z: Any) -> Any:
        """``X Z^T``, N x M, for Z of M x P."""

        def work(boxes: list[Box]) -> np.ndarray:
            total = np.zeros((self.shape[0], Z.shape[0]), self.dtype)
            for box, X in self._chunks(boxes, self.dtype):
                self._product(X, Z[:, box.columns].T, total, 1.0, 1.0)
            return total

        first, *others = self._run(work)
        for other in others:
            first += other
        return first

    def gram(self) -> np.ndarray:
        """``X X^T``, symmetric (N, N) float64. Also when N > P: ``X^T X`` would need every pair of windows."""
        N = self.shape[0]
        total = np.zeros((N, N), order="F")
        for _, X in self._chunks(self._boxes(np.dtype(np.float64)), np.dtype(np.float64)):
            syrk(X, total)
        return mirror(total)

    def forward_on(self, pool: Executor, n_threads: int, W: Any) -> np.ndarray:
        """``W^T X``, M x P; the threads are its own."""
        return self.forward(W, np.empty((W.shape[1], self.shape[1]), self.dtype))

    def adjoint_on(self, pool: Executor, n_threads: int, Z: Any) -> np.ndarray:
        """``X Z^T``, N x M; the threads are its own."""
        return self.adjoint(Z)

    def gather_products(self, samples: np.ndarray, inputs: np.ndarray, known: int, G: np.ndarray) -> None:
        """Fill G, products of the rows `inputs` of X over `samples`, where its first `known` rows are known."""
        from nettrim.kernels import passes

        (B, h, w), part, index = self._grid, np.empty_like(G), np.arange(inputs.size)
        G[known:] = G[:, known:] = 0
        step = max(1, _ROWS_BYTES // (self.dtype.itemsize * inputs.size * h * w))
        for b in range(0, B, step):
            few = Convolution(self.images[b : b + step], self.geometry, dtype=self.dtype)
            X = np.empty((inputs.size, few.shape[1]), self.dtype)
            for n, row in zip(inputs.tolist(), X, strict=True):
                few.row(n, row)
            first = b * h * w
            inside = samples[np.searchsorted(samples, first) : np.searchsorted(samples, first + few.shape[1])] - first
            passes.gather_products(X, inside, index, known, part)
            G[known:] += part[known:]
            G[:known, known:] += part[:known, known:]

    def gram_of(self, samples: np.ndarray, inputs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Dense.gram_of`, but all of G: rows of X that are unfolded for some of it are not kept."""
        G = np.empty((inputs.size, inputs.size))
        self.gather_products(samples, inputs, 0, G)
        return G, np.ones(inputs.size, bool), self.block_of(samples, inputs)

    def block_of(self, samples: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """No rows."""
        return np.empty((0, inputs.size, 0), self.dtype)

    def gather_columns(self, inputs: np.ndarray, samples: np.ndarray, A: np.ndarray) -> None:
        """Fill A with the entries of X at these rows and columns."""
        A[...] = self.columns(samples)[inputs]

    # chunks

    def _boxes(self, dtype: np.dtype) -> list[Box]:
        """All windows, as blocks of about _CHUNK_BYTES of their columns, in order."""
        N, P = self.shape
        step = max(_CHUNK_BYTES // (dtype.itemsize * N), _LEAST_COLUMNS)
        # every thread has a block
        step = max(1, min(step, -(-P // self._parts())))
        _, h, w = self._grid
        # more than one of a dimension only where the next ones are whole: the columns of a block are adjacent
        sizes = max(1, step // (h * w)), max(1, step // w), step
        boxes = []
        for corner in itertools.product(*(range(0, n, size) for n, size in zip(self._grid, sizes, strict=True))):
            sides = [slice(a, min(a + size, n)) for a, size, n in zip(corner, sizes, self._grid, strict=True)]
            start = (corner[0] * h + corner[1]) * w + corner[2]
            count = int(np.prod([side.stop - side.start for side in sides]))
            boxes.append(Box(sides[0], sides[1], sides[2], slice(start, start + count)))
        return boxes

    def _chunks(self, boxes: list[Box], dtype: np.dtype) -> Iterator[tuple[Box, np.ndarray]]:
        """The boxes and their columns of X in `dtype`; each is overwritten by the next."""
        most = max(box.columns.stop - box.columns.start for box in boxes)
        buffer, scratch = np.empty(self.shape[0] * most, dtype), np.empty(0, self.dtype)
        for box in boxes:
            count = box.columns.stop - box.columns.start
            X = buffer[: self.shape[0] * count].reshape(self.shape[0], count)
            scratch = self._unfold(box, X, scratch)
            yield box, X

    # threads

    def _parts(self) -> int:
        """Threads that the windows are worth."""
        return max(1, min(self._n_threads, self.shape[0] * self.shape[1] * self.dtype.itemsize // _THREAD_BYTES))

    def _run(self, work: Callable[[list[Box]], Any]) -> list[Any]:
        """Results of `work` on equal shares of the boxes, in order, each in its own thread.

        Copies and products alternate, so BLAS is held to one thread each (see nettrim.backends.gemm).
        """
        boxes = self._boxes(self.dtype)
        parts = min(self._parts(), len(boxes))
        if not self._numba:
            return [work(boxes)]
        with limit(1):
            if parts == 1:
                return [work(boxes)]
            edges = [k * len(boxes) // parts for k in range(parts + 1)]
            with ThreadPoolExecutor(parts) as pool:
                return list(pool.map(work, (boxes[a:b] for a, b in itertools.pairwise(edges))))

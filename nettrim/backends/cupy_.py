"""The GPU backend: CuPy's cuBLAS and cuSOLVER around the CUDA kernels of kernels/cuda.

Work goes to CuPy's current stream. Nothing waits for the device between checks: the ball's norm stays there, in a fixed
order of summation, and so do the shrink factors that follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from nettrim.backends.base import MOMENTS_BYTES
from nettrim.extras import install

__all__ = ["CudaTransfers", "CupyBackend"]

#: threads of a block, packs of 16 bytes that a thread handles, and blocks of a row at most
THREADS, PACKS, PIECES = 256, 4, 64
#: rows of a grid at most
ROWS = 65535
#: host arrays above this many bytes are copied by blocks of that size
LARGE_BYTES = 64 << 20
#: by dtype, the names of the kernels for packs of 16 bytes and for single entries
_SUFFIX = {np.dtype(np.float32): ("float", 4), np.dtype(np.float64): ("double", 2)}


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f'backend="cupy" needs CuPy: {install("cuda12")}, or cuda13, by the version of CUDA'
        ) from error
    try:
        import cupy.cublas
    except ImportError as error:
        raise ImportError(
            f'backend="cupy" needs the libraries of CUDA, which CuPy does not find ({error}): install CUDA, or '
            "pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'"
        ) from error
    return cupy


@cache
def _kernels(device: int) -> Callable[[str], Any]:
    """The compiled kernels on a device, by name. CuPy keeps what it has compiled on disk, by the text of its source."""
    folder = resources.files("nettrim.kernels") / "cuda"
    # an included file would not be part of that text
    arithmetic = (folder / "prox.cuh").read_text().replace("#pragma once", "")
    source = (folder / "admm.cu").read_text().replace('#include "prox.cuh"', arithmetic)
    return cache(_cupy().RawModule(code=source, options=("--std=c++17",)).get_function)


@cache
def _squares() -> Any:
    """Sum of squares in float64, without a float64 copy."""
    expressions = "(double)x * (double)x", "a + b", "y = a", "0"
    return _cupy().ReductionKernel("T x", "float64 y", *expressions, "nettrim_sum_of_squares")


class CudaTransfers:
    """See :class:`nettrim.backends.base.Transfers`: a stream for each direction, and page-locked memory.

    An event a slot for each of three things that others wait for: it has arrived, it has been worked on, it has left.
    """

    def __init__(self, cp: Any, slots: int):
        self._cp = cp
        # streams that do not wait for the legacy default stream, which may be where the work is
        self._in, self._out = (cp.cuda.Stream(non_blocking=True) for _ in range(2))
        self._arrived, self._used, self._left = (
            [cp.cuda.Event(disable_timing=True) for _ in range(slots)] for _ in range(3)
        )

    def host_buffer(self, size: int, dtype: Any) -> np.ndarray:
        dtype, cuda = np.dtype(dtype), self._cp.cuda
        # not from CuPy's pool, which rounds up to powers of two and keeps what it has had
        memory = cuda.PinnedMemoryPointer(cuda.PinnedMemory(max(size, 1) * dtype.itemsize), 0)
        return np.frombuffer(memory, dtype, size)

    def reusable(self, slot: int) -> None:
        self._arrived[slot].synchronize()

    def send(self, slot: int, pairs: list[tuple[Any, np.ndarray]]) -> None:
        self._in.wait_event(self._used[slot])
        self._in.wait_event(self._left[slot])
        for device, host in pairs:
            self._copy(device.data.ptr, host.ctypes.data, host.nbytes, "memcpyHostToDevice", self._in)
        self._arrived[slot].record(self._in)

    def arrived(self, slot: int) -> None:
        self._cp.cuda.get_current_stream().wait_event(self._arrived[slot])

    def used(self, slot: int) -> None:
        self._used[slot].record(self._cp.cuda.get_current_stream())

    def receive(self, slot: int, host: np.ndarray, device: Any) -> None:
        self._out.wait_event(self._used[slot])
        self._copy(host.ctypes.data, device.data.ptr, host.nbytes, "memcpyDeviceToHost", self._out)
        self._left[slot].record(self._out)

    def drain(self) -> None:
        for stream in (self._in, self._out, self._cp.cuda.get_current_stream()):
            stream.synchronize()

    def _copy(self, to: int, source: int, size: int, kind: str, stream: Any) -> None:
        runtime = self._cp.cuda.runtime
        runtime.memcpyAsync(to, source, size, getattr(runtime, kind), stream.ptr)


class CupyBackend:
    """See :class:`nettrim.backends.base.Backend` for what each function promises.

    Raises
    ------
    ImportError
        CuPy is not installed.
    RuntimeError
        There is no usable GPU, or its float32 products are rounded to TF32.
    """

    name = "cupy"
    on_host = False
    block_bytes = 512 << 20

    def __init__(self) -> None:
        cp = self.cp = _cupy()
        try:
            self._kernel = _kernels(cp.cuda.Device().id)
        except cp.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(f'backend="cupy" found no usable GPU: {error}. Use backend="numba".') from error
        self._radii: tuple[np.ndarray, Any] | None = None
        self._assert_float32()

    def _assert_float32(self) -> None:
        """TF32 keeps 10 bits of a factor: the ball would be violated by some per cent."""
        ones = self.cp.ones((256, 256), np.float32)
        exact = 1 + 2.0**-12
        if float(self.product(ones * np.float32(exact), ones)[0, 0]) != 256 * exact:
            raise RuntimeError(
                "float32 products are rounded to TF32 on this GPU: unset NVIDIA_TF32_OVERRIDE and CUPY_TF32"
            )

    # arrays

    def asarray(self, a: Any, dtype: Any) -> Any:
        a = self._upload(a, dtype)
        return a if a.flags.c_contiguous or a.flags.f_contiguous else self.cp.ascontiguousarray(a)

    def share(self, a: Any) -> Any:
        if getattr(a, "__dlpack_device__", lambda: (0, 0))() != (2, self.cp.cuda.Device().id):
            return None
        # the producer's stream has work to do to it: this one waits for that
        return a if isinstance(a, self.cp.ndarray) else self.cp.from_dlpack(a)

    def rowwise(self, a: Any, dtype: Any) -> Any:
        return self.cp.ascontiguousarray(self._upload(a, dtype))

    def _upload(self, a: Any, dtype: Any) -> Any:
        """On the device in `dtype`; large arrays by blocks, or CuPy would keep page-locked memory of their size."""
        if not isinstance(a, np.ndarray) or isinstance(a, self.cp.ndarray) or a.ndim != 2 or a.nbytes < LARGE_BYTES:
            return self.cp.asarray(a, dtype=dtype)
        if a.flags.f_contiguous and not a.flags.c_contiguous:
            return self._upload(a.T, dtype).T
        made = self.cp.empty(a.shape, dtype)
        step = max(1, LARGE_BYTES // (a.shape[1] * made.dtype.itemsize))
        for r in range(0, a.shape[0], step):
            made[r : r + step].set(np.ascontiguousarray(a[r : r + step], dtype))
        return made

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.cp.zeros(shape, dtype)

    def copy(self, a: Any) -> Any:
        return a.copy()

    def to_host(self, a: Any) -> np.ndarray:
        return self.cp.asnumpy(a)

    def cast(self, a: Any, dtype: Any) -> Any:
        return a.astype(dtype, copy=False)

    # linear algebra

    def product(self, A: Any, B: Any, out: Any = None, alpha: float = 1.0, beta: float = 0.0) -> Any:
        if out is None:
            out = self.cp.empty((A.shape[0], B.shape[1]), A.dtype)
            beta = 0.0
        return self.cp.cublas.gemm("N", "N", A, B, out=out, alpha=alpha, beta=beta)

    def moments(self, X: Any) -> np.ndarray:
        total = self.cp.zeros((X.shape[0],) * 2, np.float64)
        self.add_moments(total, X)
        return self.to_host(total)

    def add_moments(self, total: Any, X: Any) -> None:
        N, P = X.shape
        step = max(1, MOMENTS_BYTES // (8 * N))
        for p in range(0, P, step):
            chunk = self.cp.ascontiguousarray(X[:, p : p + step]).astype(np.float64, copy=False)
            self.product(chunk, chunk.T, total, 1.0, 1.0)

    def inverse(self, A: np.ndarray) -> Any:
        import cupyx
        from cupyx.scipy.linalg import solve_triangular

        # without this, cuSOLVER's failures pass in silence
        with cupyx.errstate(linalg="raise"):
            L = self.cp.linalg.cholesky(self.cp.asarray(A))
            half = solve_triangular(L, self.cp.eye(A.shape[0]), lower=True)
        return self.product(half.T, half)

    def norm(self, a: Any) -> float:
        return float(np.sqrt(float(_squares()(a))))

    def weight_sums(self, W: Any, H: Any, C: Any) -> tuple[float, np.ndarray]:
        cp = self.cp
        objective = (cp.abs(W) * C).sum(dtype=np.float64)
        # an unpenalised entry has no limit here
        limit = cp.where(C > 0, C, C.dtype.type(np.inf))
        return float(objective), self.to_host((cp.abs(H) / limit).max(0)).astype(np.float64)

    # memory

    def wait(self) -> None:
        self.cp.cuda.get_current_stream().synchronize()

    def transfers(self, slots: int) -> CudaTransfers:
        return CudaTransfers(self.cp, slots)

    def memory(self) -> tuple[str, int]:
        cp = self.cp
        device = cp.cuda.Device()
        name = cp.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
        pool = cp.get_default_memory_pool()
        # what the pool holds and nobody uses is as good as free; its limit is the user's wish
        free = cp.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
        limit = pool.get_limit()
        return name, min(free, limit - pool.used_bytes()) if limit else free

    def out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError):
            return True
        # page-locked memory, and the workspaces of cuBLAS and cuSOLVER
        known = "CUDARuntimeError", "CUDADriverError", "CUBLASError", "CUSOLVERError"
        words = "MemoryAllocation", "OUT_OF_MEMORY", "ALLOC_FAILED"
        return type(error).__name__ in known and any(word in str(error) for word in words)

    # passes

    def ball_norms(self, T: Any, target: Any, mask: Any) -> Any:
        return self._sums("ball_norms", T, (T, target, mask), 1).reshape(-1)

    def shrink(self, squares: Any, radii: np.ndarray, dtype: Any) -> Any:
        if self._radii is None or self._radii[0] is not radii:
            self._radii = radii, self.cp.asarray(radii, dtype=np.float64)
        scale = self.cp.empty(squares.shape[0], dtype)
        arguments = squares, self._radii[1], np.int32(radii.size == 1), scale, np.int64(squares.shape[0])
        self._launch(f"shrink_{_SUFFIX[scale.dtype][0]}", (1,), arguments)
        return scale

    def project_relax(self, T: Any, target: Any, mask: Any, upper: Any, scale: Any, alpha: float) -> None:
        arrays = T, target, mask, upper, np.int32(upper.size == 1), scale, T.dtype.type(alpha)
        self._rows("project_relax", T, arrays)

    def soft_relax(self, T2: Any, threshold: Any, alpha: float) -> None:
        (N, M), (rows, columns) = T2.shape, threshold.shape
        threshold = self.cp.ascontiguousarray(threshold)
        steps = np.int64(columns if rows > 1 else 0), np.int64(columns > 1)
        blocks = min(max(1, -(-N * M // (THREADS * 8))), ROWS)
        arguments = self._contiguous(T2), threshold, *steps, T2.dtype.type(alpha), np.int64(N), np.int64(M)
        self._launch(f"soft_relax_{_SUFFIX[T2.dtype][0]}", (blocks,), arguments)

    def multiplier_sums(self, Q: Any, target: Any, mask: Any, upper: Any) -> Any:
        arrays = Q, target, mask, upper, np.int32(upper.size == 1)
        return self._sums("multiplier_sums", Q, arrays, 3)

    def violation_sums(self, Z: Any, target: Any, mask: Any, upper: Any) -> Any:
        arrays = Z, target, mask, upper, np.int32(upper.size == 1)
        return self._sums("violation_sums", Z, arrays, 3, largest=True)

    def residual_sums(self, T: Any, Z: Any, target: Any, mask: Any, upper: Any, scale: Any) -> Any:
        arrays = T, Z, target, mask, upper, np.int32(upper.size == 1), scale
        return self._sums("residual_sums", T, arrays, 3)

    # launches

    def _sums(self, kernel: str, like: Any, arguments: tuple[Any, ...], columns: int, largest: bool = False) -> Any:
        """(M, columns) sums on the device: blocks write partial ones, which are added in order."""
        M = like.shape[0]
        pieces = self._pieces(like)
        partial, out = self.cp.empty((M, pieces, columns), np.float64), self.cp.empty((M, columns), np.float64)
        self._rows(kernel, like, (*arguments, partial))
        blocks = -(-M * columns // THREADS)
        final = partial, np.int32(pieces), np.int32(columns), np.int32(largest), out, np.int64(M)
        self._launch("collect", (blocks,), final)
        return out

    def _pieces(self, like: Any) -> int:
        """Blocks of a row; a function of the shape alone, so that sums repeat bit for bit."""
        width = _SUFFIX[like.dtype][1]
        return int(min(PIECES, max(1, -(-like.shape[1] // (THREADS * PACKS * width)))))

    def _rows(self, kernel: str, like: Any, arguments: tuple[Any, ...]) -> None:
        """Run a kernel on the rows of M x P arrays, 16 bytes at a time where all of them allow it."""
        name, width = _SUFFIX[like.dtype]
        M, P = like.shape
        arrays = [self._contiguous(a) for a in arguments if getattr(a, "shape", ()) == like.shape]
        # an entry of the mask is a byte: its packs are of `width` bytes
        if P % width or any(a.data.ptr % (width * a.itemsize) for a in arrays):
            width = 1
        grid = self._pieces(like), min(M, ROWS)
        self._launch(f"{kernel}_{name}_{width}", grid, (*arguments, np.int64(M), np.int64(P)))

    def _launch(self, kernel: str, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        self._kernel(kernel)(grid, (THREADS,), arguments)

    @staticmethod
    def _contiguous(a: Any) -> Any:
        if not a.flags.c_contiguous:
            raise ValueError("kernels need row-major arrays")
        return a

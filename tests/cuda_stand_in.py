"""A stand-in for CuPy on the CPU: NumPy arrays that refuse to mix with the host's, and the real kernels, by g++.

kernels/cuda/admm.cu is compiled with tests/cuda_host.h, which runs a block as one thread; launches loop over blocks.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from cuda_timeline import Timeline

from nettrim.backends import cupy_

HERE = Path(__file__).parent
CUDA = HERE.parent / "kernels" / "cuda"


def compile_for_host(folder: Path) -> ctypes.CDLL:
    """The kernels as a shared library; without contraction, so that results are NumPy's bit for bit."""
    library = folder / "admm.so"
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    # a GPU refuses packs of 16 bytes that are not aligned, where this processor would not mind
    command += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    command += ["-x", "c++", "-include", str(HERE / "cuda_host.h"), "-o", str(library), str(CUDA / "admm.cu")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def has_compiler() -> bool:
    return shutil.which("g++") is not None


class _Index(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


_SCALARS = {
    np.int32: ctypes.c_int,
    np.int64: ctypes.c_longlong,
    np.float32: ctypes.c_float,
    np.float64: ctypes.c_double,
}


class DeviceArray(np.ndarray):
    """As on a device: NumPy functions, and operations with host arrays, raise."""

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.ctypes.data)

    #: times that the host has waited for a number from the device
    waits = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __float__(self) -> float:
        DeviceArray.waits += 1
        return float(self.view(np.ndarray))

    def __bool__(self) -> bool:
        DeviceArray.waits += 1
        return bool(self.view(np.ndarray))

    def set(self, a: np.ndarray) -> None:
        assert type(a) is np.ndarray and a.flags.c_contiguous and a.dtype == self.dtype and a.shape == self.shape
        host(self)[...] = a

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        arrays = [a for a in (*inputs, *(out or ())) if isinstance(a, np.ndarray)]
        if not all(isinstance(a, DeviceArray) for a in arrays):
            raise TypeError(f"numpy.{ufunc.__name__} mixes host and device arrays")
        plain = [a.view(np.ndarray) if isinstance(a, DeviceArray) else a for a in inputs]
        if out is not None:
            kwargs["out"] = tuple(a.view(np.ndarray) for a in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        return out[0] if out is not None else device(result)

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} on a device array")


def device(a: Any) -> Any:
    return np.asarray(a).view(DeviceArray) if isinstance(a, (np.ndarray, np.generic)) else a


def host(a: DeviceArray) -> np.ndarray:
    if not isinstance(a, DeviceArray):
        raise TypeError(f"not on the device: {type(a).__name__}")
    return a.view(np.ndarray)


class Module:
    """`RawModule`: checks its source and options, and runs what g++ made of it."""

    library: ctypes.CDLL
    cuda: Any

    def __init__(self, code: str, options: tuple[str, ...]):
        # CuPy's cache knows the text that it is given, and no other file
        assert "#include" not in code and "NETTRIM_FUNCTION" in code and "project_relax_##NAME" in code

    def get_function(self, name: str):
        kernel = getattr(self.library, name)
        index, size = (_Index.in_dll(self.library, symbol) for symbol in ("blockIdx", "gridDim"))

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple) -> None:
            assert all(n >= 1 for n in (*grid, *block))
            size.x, size.y = grid[0], grid[1] if len(grid) > 1 else 1
            # which of them a kernel writes is not known here: all of them
            arrays = [a.ctypes.data for a in arguments if isinstance(a, DeviceArray)]
            self.cuda.timeline.access(self.cuda.current, writes=arrays)
            converted = []
            for a in arguments:
                if isinstance(a, DeviceArray):
                    assert a.flags.c_contiguous
                    converted.append(ctypes.c_void_p(a.ctypes.data))
                else:
                    converted.append(_SCALARS[type(a)](a.item()))
            for index.y, index.x in itertools.product(range(size.y), range(size.x)):
                kernel(*converted)

        return launch


class RuntimeFailure(RuntimeError):
    """`cupy.cuda.runtime.CUDARuntimeError`."""


class ExhaustedError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`."""


class Cuda(types.SimpleNamespace):
    """`cupy.cuda`: streams and events that keep a timeline, copies, memory."""

    def __init__(self, free: int = 1 << 40):
        cuda, timeline = self, Timeline()
        streams: dict[int, Any] = {}

        class Stream:
            def __init__(self, non_blocking: bool = False):
                self.ptr = len(streams)
                streams[self.ptr] = self

            def __repr__(self) -> str:
                return f"stream {self.ptr}"

            def wait_event(self, event: Any) -> None:
                timeline.learn(self, event.clock)

            def synchronize(self) -> None:
                timeline.learn(Timeline.HOST, timeline.snapshot(self))

        class Event:
            def __init__(self, disable_timing: bool = False):
                # one that was never recorded holds nobody up
                self.clock: dict = {}

            def record(self, stream: Any = None) -> None:
                self.clock = timeline.snapshot(stream or cuda.current)
                self.seconds = time.perf_counter()

            def synchronize(self) -> None:
                timeline.learn(Timeline.HOST, self.clock)

        class Device:
            """The only one."""

            def __init__(self, index: int = 0):
                assert index == 0
                self.id = index

            def synchronize(self) -> None:
                for stream in streams.values():
                    stream.synchronize()

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                return None

        def copy(to: int, source: int, size: int, kind: int, stream: int) -> None:
            timeline.access(streams[stream], reads=[source], writes=[to])
            ctypes.memmove(to, source, size)

        def pinned(size: int, flags: int = 0) -> Any:
            assert size > 0
            memory = bytearray(size)
            timeline.forget(np.frombuffer(memory, np.uint8).ctypes.data)
            return memory

        super().__init__(timeline=timeline, Device=Device, Stream=Stream, Event=Event, PinnedMemory=pinned)
        self.get_elapsed_time = lambda start, stop: 1e3 * (stop.seconds - start.seconds)
        self.current = Stream()
        self.get_current_stream = lambda: self.current
        self.PinnedMemoryPointer = lambda memory, offset: memoryview(memory)[offset:]
        self.runtime = types.SimpleNamespace(
            CUDARuntimeError=RuntimeFailure,
            memcpyAsync=copy,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            memGetInfo=lambda: (free, 1 << 40),
            getDeviceProperties=lambda index: {"name": b"a card"},
            runtimeGetVersion=lambda: 0,
            driverGetVersion=lambda: 0,
        )


class Pool(types.SimpleNamespace):
    """`cupy.get_default_memory_pool()`: somebody else's, which is asked and never changed."""

    def __init__(self, unused: int = 0, used: int = 0, limit: int = 0):
        super().__init__(free_bytes=lambda: unused, used_bytes=lambda: used, get_limit=lambda: limit)


class ForeignArray:
    """Another library's array on the GPU: DLPack is all that it speaks."""

    def __init__(self, a: np.ndarray):
        self.memory = a

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def gemm_of(cuda: Any) -> Any:
    """`cupy.cublas.gemm` on the current stream."""

    def on_stream(transa: str, transb: str, a: Any, b: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
        reads, writes = [a.ctypes.data, b.ctypes.data], [out.ctypes.data]
        cuda.timeline.access(cuda.current, reads, writes)
        return gemm(transa, transb, a, b, out, alpha, beta)

    return on_stream


def gemm(transa: str, transb: str, a: Any, b: Any, out: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    assert (transa, transb) == ("N", "N")
    assert a.dtype == b.dtype == out.dtype and out.shape == (a.shape[0], b.shape[1])
    result = alpha * (host(a) @ host(b))
    host(out)[...] = result + beta * host(out) if beta else result
    return out


def forget() -> None:
    """What the backend remembers of a module."""
    for remembered in (cupy_._kernels, cupy_._squares):
        remembered.cache_clear()


def modules_of(library: ctypes.CDLL) -> dict[str, types.ModuleType]:
    """Modules to put into ``sys.modules``."""
    cuda = Cuda()
    module = type("RawModule", (Module,), {"library": library, "cuda": cuda})
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    cupy.__version__ = "0"
    cupy.RawModule = module
    cupy.empty_like = lambda a: device(np.empty_like(host(a)))
    cupy.ndarray = DeviceArray
    # what is on the device already stays where it is, anything else is copied to it
    cupy.asarray = lambda a, dtype=None: device(
        np.array(a, dtype=dtype, copy=None if isinstance(a, DeviceArray) else True, order="K")
    )

    def asnumpy(a: Any) -> np.ndarray:
        DeviceArray.waits += 1
        cuda.current.synchronize()
        return host(a).copy()

    cupy.asnumpy = asnumpy

    def zeros(shape: Any, dtype: Any) -> DeviceArray:
        a = device(np.zeros(shape, dtype))
        cuda.timeline.access(cuda.current, writes=[a.ctypes.data])
        return a

    cupy.zeros = zeros
    pool = Pool()
    cupy.get_default_memory_pool = lambda: pool

    def empty(shape: Any, dtype: Any) -> DeviceArray:
        # whatever was there before
        return device(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 85, dtype))

    class ReductionKernel:
        def __init__(self, *expressions: str):
            assert expressions[:5] == ("T x", "float64 y", "(double)x * (double)x", "a + b", "y = a")

        def __call__(self, a: Any) -> Any:
            return device(np.square(host(a), dtype=np.float64).sum())

    cupy.empty, cupy.ReductionKernel = empty, ReductionKernel
    cupy.abs = lambda a: device(np.abs(host(a)))
    cupy.where = lambda c, a, b: device(np.where(host(c), host(a), b))
    for make in (np.ones, np.eye):
        setattr(cupy, make.__name__, lambda *args, make=make: device(make(*args)))
    cupy.ascontiguousarray = lambda a: device(np.ascontiguousarray(host(a)))
    cupy.square = lambda a, dtype: device(np.square(host(a), dtype=dtype))
    cupy.sqrt = lambda a: device(np.sqrt(host(a)))
    cupy.cublas = types.ModuleType("cupy.cublas")
    cupy.cublas.gemm = gemm_of(cuda)
    cupy.linalg = types.SimpleNamespace(cholesky=lambda a: device(np.linalg.cholesky(host(a))))
    cupy.cuda = cuda
    cupy.from_dlpack = lambda a: device(np.from_dlpack(a.memory))

    class Errstate:
        def __init__(self, linalg: str):
            assert linalg == "raise"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    cupyx.errstate = Errstate
    scipy_, linalg = types.ModuleType("cupyx.scipy"), types.ModuleType("cupyx.scipy.linalg")
    linalg.solve_triangular = lambda a, b, lower: device(scipy.linalg.solve_triangular(host(a), host(b), lower=lower))
    cupyx.scipy, scipy_.linalg = scipy_, linalg
    return {
        "cupy": cupy,
        "cupy.cublas": cupy.cublas,
        "cupyx": cupyx,
        "cupyx.scipy": scipy_,
        "cupyx.scipy.linalg": linalg,
    }

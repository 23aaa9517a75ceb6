"""Matrices on disk, read some samples at a time: memory maps, .npy files, HDF5, Zarr and Dask arrays.

What is mapped is read through the map: the pages of a part are asked for at once, copied, and given back, so that a
process never holds more of a map than the part that it copies. Other arrays give their parts themselves.
"""

from __future__ import annotations

import mmap
import os
from copy import copy as shallow_copy
from typing import Any

import numpy as np

__all__ = ["READ_BYTES", "Chunked"]

#: bytes of a part, where whoever reads has no limit of its own
READ_BYTES = 16 << 20
#: bytes of a map that are copied before its pages are given back
_HELD = 8 << 20
#: the kernel maps so many bytes around a page that is touched, where its cache has them as a huge page
_AROUND = 2 << 20
#: samples that are transposed at a time: their lines stay in the cache
_TRANSPOSED = 64

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(bool))


class Chunked:
    """X or Y of a `Problem` that exceeds the memory: read a part at a time, never as a whole.

    >>> import numpy as np, nettrim as nt, tempfile, pathlib
    >>> rng = np.random.default_rng(0)
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> X = rng.standard_normal((20, 1000))
    >>> np.save(folder / "X.npy", X.T)                           # samples in rows: read without gaps
    >>> np.save(folder / "Y.npy", np.maximum(X[:5], 0).T)
    >>> X, Y = (nt.Chunked(folder / name, samples="rows") for name in ("X.npy", "Y.npy"))
    >>> X
    Chunked(N=20, P=1000, float64, samples in rows)
    >>> nt.solve(X, Y, epsilon=0.05, memory="100MB").status
    <Status.SOLVED: 'solved'>

    Parameters
    ----------
    source : array on disk, or path of an .npy file
        Anything with ``shape``, ``dtype`` and slices: numpy.memmap, an h5py dataset, a Zarr array, a Dask array; of
        float32 or float64, or bool for a mask. A path is opened as a memory map.
    samples : {"columns", "rows"}
        What of the source is a sample. Rows are read without gaps from an array in C order, which is quicker.

    Raises
    ------
    TypeError
        The source has no shape, dtype or slices, or another dtype.
    ValueError
        It is no matrix, is empty or of unknown size, or the file is no whole .npy file.

    Attributes
    ----------
    shape : (N, P)
        Or (M, P): samples are columns here, wherever the source has them.
    dtype : numpy dtype
        In which it is read; that of the source unless `astype` changed it.
    """

    ndim = 2

    def __init__(self, source: Any, samples: str = "columns"):
        if samples not in ("columns", "rows"):
            raise ValueError(f"samples must be 'columns' or 'rows'; got {samples!r}")
        if isinstance(source, (str, os.PathLike)):
            source = _mapped(source)
        shape, dtype = getattr(source, "shape", None), getattr(source, "dtype", None)
        if isinstance(source, Chunked) or shape is None or dtype is None or not hasattr(source, "__getitem__"):
            raise TypeError(
                "source must be the path of an .npy file, or have a shape, a dtype and slices, as memory maps, HDF5, "
                f"Zarr and Dask arrays have; got {type(source).__name__}"
            )
        try:
            self.stored = np.dtype(dtype).newbyteorder("=")
        except TypeError:
            self.stored = np.dtype(object)
        if self.stored not in _DTYPES:
            raise TypeError(f"source must be float32 or float64 (bool for a mask); got {dtype}")
        if len(shape) != 2:
            raise ValueError(f"source must be a matrix; got {len(shape)} dimensions, shape {tuple(shape)}")
        if not all(isinstance(n, (int, np.integer)) for n in shape):
            raise ValueError(f"source must have a known shape; got {tuple(shape)}")
        if 0 in shape:
            raise ValueError(f"source is empty: shape {tuple(shape)}")
        self.source, self.samples = source, samples
        rows, columns = (int(n) for n in shape)
        self.shape = (rows, columns) if samples == "columns" else (columns, rows)
        self.dtype = self.stored
        self._map = _map_of(source)
        strides = source.strides if isinstance(source, np.ndarray) else (2, 1)
        by_row = abs(strides[0]) >= abs(strides[1])
        #: whether the numbers of a sample are next to each other, rather than those of an input
        self.by_sample = by_row == (samples == "rows")

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample in the source."""
        return self.shape[0] * self.stored.itemsize

    @property
    def copies(self) -> bool:
        """Whether the source makes an array of every part, so that reading takes twice its memory."""
        return not isinstance(self.source, np.ndarray)

    def astype(self, dtype: Any, copy: bool = False) -> Chunked:
        """The same, read as another dtype; nothing is converted before it is read, whatever `copy` says."""
        if np.dtype(dtype) == self.dtype:
            return self
        other = shallow_copy(self)
        other.dtype = np.dtype(dtype)
        return other

    def __getitem__(self, key: Any) -> np.ndarray:
        """``X[:, samples]`` for a slice of samples, (N, w)."""
        if not isinstance(key, tuple) or len(key) != 2 or key[0] != slice(None) or not isinstance(key[1], slice):
            raise IndexError("a Chunked gives columns only: X[:, first:last]")
        return self.columns(key[1])

    def columns(self, samples: slice) -> np.ndarray:
        """The slice `samples` of the columns, a new (N, w) array.

        Raises
        ------
        ValueError
            The slice has a step.
        """
        start, stop, step = samples.indices(self.shape[1])
        if step != 1:
            raise ValueError(f"samples must be without gaps; got a step of {step}")
        width = max(stop - start, 0)
        shape = (width, self.shape[0]) if self.by_sample else (self.shape[0], width)
        out = np.empty(shape, self.dtype)
        return self.read(slice(start, start + width), out.T if self.by_sample else out)

    def read(self, samples: slice, out: np.ndarray) -> np.ndarray:
        """Copy the slice `samples`, within 0..P and without a step, to `out`, an (N, w) array of any layout."""
        if samples.stop <= samples.start:
            return out
        if self._map is None:
            part = self.source[:, samples] if self.samples == "columns" else self.source[samples, :]
            _copy(np.asarray(part) if self.samples == "columns" else np.asarray(part).T, out)
            return out
        part = self.source[:, samples] if self.samples == "columns" else self.source[samples, :].T
        self._copy_mapped(np.asarray(part), out)
        return out

    def _copy_mapped(self, part: np.ndarray, out: np.ndarray) -> None:
        """Copy a part of a map, asking for its pages before and giving them back after, some lines at a time."""
        # lines are what is contiguous: samples or inputs
        lines, target = (part.T, out.T) if self.by_sample else (part, out)
        step, length = abs(lines.strides[0]), (lines.shape[1] - 1) * abs(lines.strides[1]) + lines.itemsize
        held = min(step, length + 2 * _AROUND) or length
        count = max(1, _HELD // held)
        # what lies between the lines is read with them where it is little
        together = step <= 2 * length
        self._advise("MADV_WILLNEED", lines[:count], together)
        for first in range(0, len(lines), count):
            # the disk is busy with the next while this one is copied
            self._advise("MADV_WILLNEED", lines[first + count : first + 2 * count], together)
            block = lines[first : first + count]
            _copy(block, target[first : first + count])
            self._advise("MADV_DONTNEED", block, True, _AROUND)

    def _advise(self, what: str, lines: np.ndarray, together: bool, around: int = 0) -> None:
        """Tell the kernel about pages of the map, and so many bytes around them, where it can be told."""
        advice = getattr(mmap, what, None)
        if advice is None or not len(lines):
            return
        mapping, address = self._map
        for line in (lines,) if together else lines:
            low, high = np.lib.array_utils.byte_bounds(line)
            start = max(low - around - address, 0) // mmap.PAGESIZE * mmap.PAGESIZE
            mapping.madvise(advice, start, min(high + around - address, len(mapping)) - start)

    def __repr__(self) -> str:
        return f"Chunked(N={self.shape[0]}, P={self.shape[1]}, {self.dtype}, samples in {self.samples})"


def _mapped(path: Any) -> np.ndarray:
    if not os.fspath(path).endswith(".npy"):
        raise ValueError(f"source must be an .npy file, which can be mapped; got {os.fspath(path)!r}")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{os.fspath(path)} is no whole .npy file: {error}") from error


def _map_of(source: Any) -> tuple[mmap.mmap, int] | None:
    """Map behind an array, and its address; None if there is none, or private changes would be lost with its pages."""
    root = source
    while isinstance(getattr(root, "base", None), np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.mode == "c" or not isinstance(root.base, mmap.mmap):
        return None
    return root.base, np.frombuffer(root.base, np.uint8).ctypes.data


def _copy(part: np.ndarray, out: np.ndarray) -> None:
    """Copy and convert; where one is by rows and the other by columns, some lines at a time."""
    with np.errstate(over="ignore"):
        if part.flags.c_contiguous == out.flags.c_contiguous and part.flags.f_contiguous == out.flags.f_contiguous:
            np.copyto(out, part, casting="same_kind")
            return
        long = int(abs(part.strides[1]) > abs(part.strides[0]))
        for first in range(0, part.shape[long], _TRANSPOSED):
            s = slice(first, first + _TRANSPOSED)
            key: Any = (slice(None), s) if long else s
            np.copyto(out[key], part[key], casting="same_kind")

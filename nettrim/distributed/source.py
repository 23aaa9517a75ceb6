"""Where a worker finds its samples: files that it can open, arrays that are sent to it, or anything that pickles.

Dask pickles what its own processes send each other. Nothing here is read from a file by unpickling.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.arrays import to_host
from nettrim.chunked import Chunked, _map_of

__all__ = ["Source", "source_of"]


@dataclass(frozen=True)
class Source:
    """Some columns of a matrix, as it is sent to a worker.

    Parameters
    ----------
    kind : {"map", "dataset", "array"}
        A memory map of a file, a dataset of an HDF5 file, or an array-like itself.
    what : tuple
        What opens it.
    samples : {"columns", "rows"}
        What of it is a sample.
    first, last : int
        Of the columns.
    """

    kind: str
    what: tuple[Any, ...]
    samples: str
    first: int
    last: int

    def open(self) -> Chunked:
        """The columns, on the machine that has this."""
        if self.kind == "map":
            path, dtype, offset, shape, order = self.what
            # a file that is too short is an error at once, not at the end of it
            source: Any = np.memmap(path, dtype, "r", offset, shape, order)
        elif self.kind == "dataset":
            import h5py

            path, name = self.what
            source = h5py.File(path, "r")[name]
        else:
            (source,) = self.what
        if isinstance(source, np.ndarray):
            part = source[self.first : self.last]
            return Chunked(part if self.samples == "rows" else source[:, self.first : self.last], self.samples)
        return Chunked(_Window(source, self.samples == "rows", self.first, self.last), self.samples)


class _Window:
    """Some samples of what is read by slices."""

    def __init__(self, source: Any, rows: bool, first: int, last: int):
        self.source, self.rows, self.first = source, rows, first
        other = source.shape[1 if rows else 0]
        self.shape = (last - first, other) if rows else (other, last - first)
        self.dtype = source.dtype

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        axis = 0 if self.rows else 1
        moved = slice(key[axis].start + self.first, key[axis].stop + self.first)
        part = self.source[moved, :] if self.rows else self.source[:, moved]
        if hasattr(part, "dask"):
            # by this worker, in this thread: the cluster's own scheduler would wait for it
            part = part.compute(scheduler="synchronous")
        return np.asarray(part)


def source_of(a: Any, name: str, first: int, last: int) -> Source:
    """What a worker needs for the samples from `first` up to `last`.

    Parameters
    ----------
    a : (N, P) array or Chunked
        Of an array in memory these columns are sent; of one in a file its path, which the worker must be able to open.
    name : str
        For errors.
    first, last : int

    Returns
    -------
    Source
    """
    if not isinstance(a, Chunked):
        part = np.ascontiguousarray(to_host(a, name)[:, first:last])
        return Source("array", (part,), "columns", 0, last - first)
    given = a.source
    if isinstance(given, np.ndarray):
        place = _place(given)
        if place is not None:
            return Source("map", place, a.samples, first, last)
        part = given[first:last] if a.samples == "rows" else given[:, first:last]
        return Source("array", (np.array(part),), a.samples, 0, last - first)
    if type(given).__module__.partition(".")[0] == "h5py":
        return Source("dataset", (os.path.abspath(given.file.filename), given.name), a.samples, first, last)
    return Source("array", (given,), a.samples, first, last)


def _place(a: np.ndarray) -> tuple[Any, ...] | None:
    """(path, dtype, offset, shape, order) of a contiguous memory map of a file; None if it is none."""
    found = _map_of(a)
    path = getattr(a, "filename", None)
    if found is None or path is None or not (a.flags.c_contiguous or a.flags.f_contiguous):
        return None
    root: Any = a
    while isinstance(getattr(root, "base", None), np.ndarray):
        root = root.base
    # a part of a map remembers the offset of the whole
    start = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY
    offset = start + a.ctypes.data - found[1]
    return os.path.abspath(path), a.dtype, offset, a.shape, "C" if a.flags.c_contiguous else "F"

"""Arrays from npz files that may come from anywhere: nothing is unpickled, and nothing is allocated before its size is
known to be what the file holds.
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

__all__ = ["Archive", "open_npz"]

#: what a damaged archive or member may raise on the way: zipfile takes one for encrypted, NumPy parses headers as code
_DAMAGE = (
    *(ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, MemoryError, SyntaxError),
    *(EOFError, OSError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
#: an .npy header that is longer is not read: NumPy's own are a hundredth of it
_HEADER = 10_000


class Archive:
    """An open npz file.

    Parameters
    ----------
    bundle : zipfile.ZipFile
    path : Path
        For messages.
    """

    def __init__(self, bundle: zipfile.ZipFile, path: Path):
        self._bundle, self._path = bundle, path
        #: names of the arrays
        self.names = [name.removesuffix(".npy") for name in bundle.namelist() if name.endswith(".npy")]

    def read(self, name: str) -> np.ndarray:
        """The array of a name.

        Raises
        ------
        ValueError
            There is none, it is damaged, would need pickle, says another size than the file holds, or is larger than
            the memory of the machine.
        """
        if name not in self.names:
            raise ValueError(f"{self._path} has no array {name}")
        try:
            return self._read(name)
        except _Refusal as refusal:
            raise ValueError(str(refusal)) from None
        except _DAMAGE as error:
            raise ValueError(f"{name} in {self._path} cannot be read: {error}") from error

    def map(self, name: str) -> np.memmap:
        """The array of a name as a memory map of the file, for arrays that exceed the memory.

        Its checksum is not compared: that would take reading all of it.

        Raises
        ------
        ValueError
            As `read`; or the array is compressed, as `numpy.savez` leaves it not.
        """
        if name not in self.names:
            raise ValueError(f"{self._path} has no array {name}")
        try:
            return self._map(name)
        except _Refusal as refusal:
            raise ValueError(str(refusal)) from None
        except _DAMAGE as error:
            raise ValueError(f"{name} in {self._path} cannot be mapped: {error}") from error

    def _map(self, name: str) -> np.memmap:
        info = self._bundle.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Refusal(f"{name} in {self._path} is compressed: only what numpy.savez writes can be read in parts")
        with self._bundle.open(info) as file:
            shape, fortran, dtype, _ = self._layout(name, info, file)
            begin = file.tell()
        with open(self._path, "rb") as whole:
            # the name and what else stands before the member, as the file itself says there
            whole.seek(info.header_offset)
            header = whole.read(30)
            lengths = struct.unpack("<HH", header[26:30])
            if header[:4] != b"PK\x03\x04":
                raise _Refusal(f"{name} in {self._path} is damaged: it is not where the file says")
            offset = info.header_offset + 30 + sum(lengths) + begin
            whole.seek(offset - begin)
            if whole.read(6) != npy.MAGIC_PREFIX:
                raise _Refusal(f"{name} in {self._path} is damaged: it is not where the file says")
        return np.memmap(self._path, dtype, "r", offset, shape, "F" if fortran else "C")

    def _layout(self, name: str, info: zipfile.ZipInfo, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        """Shape, order, dtype and bytes of an array, once they fit the file; the file is left where they begin."""
        shape, fortran, dtype = _header(file)
        if dtype.hasobject:
            raise _Refusal(f"{name} in {self._path} is an array of Python objects, which would need pickle: refused")
        # whole numbers, which do not overflow
        size = math.prod(shape) * dtype.itemsize
        held = info.file_size - file.tell()
        if size != held or any(n < 0 for n in shape):
            raise _Refusal(f"{name} in {self._path} is damaged: {shape} of {dtype} are {size} bytes, and it has {held}")
        return shape, fortran, dtype, size

    def _read(self, name: str) -> np.ndarray:
        info = self._bundle.getinfo(f"{name}.npy")
        with self._bundle.open(info) as file:
            shape, fortran, dtype, size = self._layout(name, info, file)
            if size > _memory():
                raise _Refusal(f"{name} in {self._path} has {size:.3g} bytes, more than this machine's memory")
            # the checksum is looked at when the end is reached
            data = bytearray(size)
            view = memoryview(data)
            done = 0
            while done < size and (count := file.readinto(view[done:])):  # type: ignore[attr-defined]
                done += count
            if done < size or file.read(1):
                raise _Refusal(f"{name} in {self._path} is damaged: it ends after {done} of {size} bytes")
        return np.ndarray(shape, dtype, data, order="F" if fortran else "C")


class _Refusal(Exception):
    """A sentence for the user."""


@contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """Open an npz file.

    >>> import numpy as np, tempfile, pathlib
    >>> from nettrim.archives import open_npz
    >>> path = pathlib.Path(tempfile.mkdtemp(), "layer.npz")
    >>> np.savez(path, X=np.eye(2))
    >>> with open_npz(path) as archive:
    ...     archive.names, archive.read("X")
    (['X'], array([[1., 0.],
           [0., 1.]]))

    Parameters
    ----------
    path : path

    Yields
    ------
    Archive

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is a folder, or no npz file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an .npz file")
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise ValueError(f"{path} is not an .npz file (a zip of arrays, as numpy.savez writes it)")
        file.seek(0)
        try:
            bundle = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise ValueError(f"{path} is not a readable .npz file: {error}") from error
        with bundle:
            yield Archive(bundle, path)


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:  # type: ignore[no-untyped-def]
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file, max_header_size=_HEADER)
    if version == (2, 0):
        return npy.read_array_header_2_0(file, max_header_size=_HEADER)
    raise ValueError(f"version {version} of the .npy format")


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf

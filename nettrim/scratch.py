"""A file without a name for arrays that are left on disk during a solve: nobody has to delete it.

Its space is reserved at once, so that a full disk shows before the first iteration, and given back when the file is
closed, by whatever the process ends with. It is not mapped: a full disk would end the process with a signal.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading

import numpy as np

from nettrim.units import as_bytes

__all__ = ["Scratch"]


class Scratch:
    """A temporary file of zeros, read and written by position, by one thread at a time.

    Parameters
    ----------
    size : int
        Bytes.
    folder : str, optional
        Where it lies; default the system's folder for temporary files.

    Raises
    ------
    OSError
        The disk has too little space, or the folder cannot be written to; nothing is left behind.
    """

    def __init__(self, size: int, folder: str | None = None):
        self.size, self.folder = size, folder or tempfile.gettempdir()
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._explained(error) from error
            raise

    def read(self, offset: int, out: np.ndarray) -> None:
        """Fill `out`, a contiguous array, from the bytes at `offset`."""
        self._all("readinto", offset, out)

    def write(self, offset: int, values: np.ndarray) -> None:
        """Write `values`, a contiguous array, to the bytes at `offset`."""
        try:
            self._all("write", offset, values)
        except OSError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def __del__(self) -> None:
        # a state that is simply dropped; a file that could not be made has none
        if hasattr(self, "_file"):
            self.close()

    def _all(self, what: str, offset: int, values: np.ndarray) -> None:
        left = values.reshape(-1).view(np.uint8).data
        with self._lock:
            self._file.seek(offset)
            while len(left):
                done = getattr(self._file, what)(left)
                if not done:
                    raise OSError(errno.EIO, f"the scratch file ended {len(left)} bytes early")
                left = left[done:]

    def _explained(self, error: OSError) -> OSError:
        free = shutil.disk_usage(self.folder).free
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        return OSError(
            error.errno,
            f"the solver's state needs {as_bytes(self.size)} in {self.folder}, where {as_bytes(free)} are free: set "
            "scratch to a folder on another disk, or raise memory so that less of it is on disk",
        )

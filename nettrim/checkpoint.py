"""Checkpoints of ADMM: its state in a folder, from which a solve that was stopped goes on as if it had not been.

The folder holds ``state.npz``, the weights and numbers, and one or more files with columns of the state T, each
written by whoever has them. ``state.npz`` is written last and names the others with their digests, so that a checkpoint
is whole or is not there; the files of the one before are deleted after that. All are npz files, read by `archives`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.admm import State
from nettrim.archives import Archive, open_npz
from nettrim.fingerprint import fingerprint
from nettrim.problem import Problem
from nettrim.report import to_json, write_atomically
from nettrim.settings import Settings

__all__ = ["Columns", "Keeper", "Writer"]

#: of the files; another one is refused
FORMAT = 1
STATE = "state.npz"
#: bytes of a member: what is held at a time
_MEMBER = 16 << 20

log = logging.getLogger("nettrim")


@dataclass(frozen=True)
class Writer:
    """Writes columns of T into a file of the folder. Small, and sent to whoever has them.

    Parameters
    ----------
    folder : str
    stamp : str
        Part of the files' names: they never replace those of an earlier checkpoint.
    """

    folder: str
    stamp: str

    def write(self, first: int, values: Any) -> dict[str, Any]:
        """Write columns, M x P or what gives ``values[:, slice]``, the first of which is `first`; returns a record."""
        M, P = values.shape
        width = max(1, _MEMBER // (values.dtype.itemsize * M))
        record: dict[str, Any] = {"first": first, "last": first + P, "width": width, "stamp": self.stamp, "digests": []}
        with write_atomically(_part(Path(self.folder), record)) as file, zipfile.ZipFile(file, "w") as bundle:
            for k, p in enumerate(range(0, P, width)):
                part = np.ascontiguousarray(values[:, p : min(p + width, P)])
                record["digests"].append(_digest(part))
                with bundle.open(f"T{k}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, part, allow_pickle=False)
        return record


def _part(folder: Path, record: dict[str, Any]) -> Path:
    return folder / f"samples-{record['first']}-{record['last']}-{record['stamp']}.npz"


def _digest(a: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()


class Columns:
    """T in the files of a checkpoint, or some of its columns: what is asked for is read, and its digest compared.

    Parameters
    ----------
    folder : str
    records : list of dict
        As `Writer.write` returns them, in the order of the samples.
    shape : (M, P)
    dtype : numpy dtype
    first : int
        Of the columns; those before it are left out.
    """

    def __init__(self, folder: str, records: list[dict[str, Any]], shape: tuple[int, int], dtype: Any, first: int = 0):
        self.folder, self.records, self.shape, self.dtype = folder, records, shape, np.dtype(dtype)
        self.first = first
        # the last member that was read: whoever goes through the samples asks for pieces of it
        self._last: tuple[int, int] | None = None
        self._values = np.empty((0, 0))

    def between(self, first: int, last: int) -> Columns:
        """Some of the columns."""
        return Columns(self.folder, self.records, (self.shape[0], last - first), self.dtype, self.first + first)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        first, last = self.first + key[1].start, self.first + key[1].stop
        out = np.empty((self.shape[0], last - first), self.dtype)
        for r, record in enumerate(self.records):
            a, b = max(first, record["first"]), min(last, record["last"])
            while a < b:
                k = (a - record["first"]) // record["width"]
                begin = record["first"] + k * record["width"]
                end = min(begin + record["width"], b)
                out[:, a - first : end - first] = self._member(r, k)[:, a - begin : end - begin]
                a = end
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:, slice(0, self.shape[1])]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _member(self, r: int, k: int) -> np.ndarray:
        if self._last != (r, k):
            record = self.records[r]
            path = _part(Path(self.folder), record)
            try:
                with open_npz(path) as archive:
                    values = archive.read(f"T{k}")
            except FileNotFoundError:
                raise ValueError(f"{path}, which belongs to the checkpoint, is not there") from None
            width = min(record["width"], record["last"] - record["first"] - k * record["width"])
            if values.shape != (self.shape[0], width) or values.dtype != self.dtype or _is_other(values, record, k):
                raise ValueError(f"{path} is damaged: its digest is not that of the checkpoint")
            self._last, self._values = (r, k), values
        return self._values


def _is_other(values: np.ndarray, record: dict[str, Any], k: int) -> bool:
    return _digest(values) != record["digests"][k]


class Keeper:
    """Keeps the checkpoint of one problem in a folder.

    Parameters
    ----------
    folder : str
        Made if it is not there.
    every : float
        Seconds between two checkpoints.
    fingerprint : str
        Of the problem.
    versions : dict of str to str
        Of what computes, for the record.
    """

    def __init__(self, folder: str, every: float, fingerprint: str, versions: dict[str, str]):
        self.folder, self.every = Path(folder), every
        self.fingerprint, self.versions = fingerprint, versions
        self._at = time.monotonic()

    @classmethod
    def of(cls, problem: Problem, settings: Settings, backend: str) -> Keeper | None:
        """That of a solve; None if its settings have no checkpoint."""
        # the package is not whole yet when this module is imported
        from nettrim import __version__

        if settings.checkpoint is None:
            return None
        versions = {"nettrim": __version__, "numpy": np.__version__, "backend": backend}
        return cls(settings.checkpoint, settings.checkpoint_every, fingerprint(problem), versions)

    def keep(self, state: State, iterations: int, samples: Any) -> None:
        """Write the state if the last checkpoint is old enough."""
        if time.monotonic() - self._at >= self.every:
            self.write(state, samples, iterations)

    def write(self, state: State, samples: Any, iterations: int) -> None:
        """Write the state after so many iterations of this solve.

        A full disk is no reason to lose the solve: there is a warning, and the checkpoint before stays.
        """
        began = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(state, samples, iterations)
        except OSError as error:
            self._at = time.monotonic()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._clear(self._committed())
            warnings.warn(
                f"the checkpoint in {self.folder} could not be written, and the solve goes on: {error.strerror}",
                UserWarning,
                stacklevel=2,
            )
            return
        self._at = time.monotonic()
        log.info("checkpoint of iteration %d in %s, %.1f s", state.iteration, self.folder, self._at - began)

    def _write(self, state: State, samples: Any, iterations: int) -> None:
        be = samples.backend
        arrays = {"T2": be.to_host(state.T2), "W": be.to_host(state.W)}
        arrays |= {f"memory.{name}": a for name, a in state.memory.items()}
        stamp = f"{state.iteration}-{time.time_ns():x}"
        records = samples.save(state.T, Writer(str(self.folder), stamp))
        about = {
            "format": FORMAT,
            "versions": self.versions,
            "fingerprint": self.fingerprint,
            "shape": list(samples.shape),
            "dtype": str(samples.dtype),
            "r": state.r,
            "tau": state.tau,
            "iteration": state.iteration,
            "iterations": iterations,
            "parts": records,
            "digests": {name: _digest(a) for name, a in arrays.items()},
        }
        text = to_json(about)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        with write_atomically(self.folder / STATE) as file:
            np.savez(file, about=np.array(text), checksum=np.array(checksum), **arrays)
        _, M, P = samples.shape
        samples.saved(Columns(str(self.folder), records, (M, P), samples.dtype))
        self._clear(records)

    def resume(self, samples: Any) -> tuple[State, int] | None:
        """The state, on its device, and the iterations made; None if there is no checkpoint. Raises as `read`."""
        found = self.read(samples)
        if found is None:
            return None
        state, columns, iterations = found
        state.T = samples.state()
        samples.load(state.T, columns)
        log.info("on from iteration %d of the checkpoint in %s", state.iteration, self.folder)
        return state, iterations

    def read(self, samples: Any) -> tuple[State, Columns, int] | None:
        """State but for T, T's columns, and the iterations made; None if there is no checkpoint.

        Raises
        ------
        ValueError
            It is damaged, of another format, or of another problem.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        with open_npz(path) as archive:
            about = self._about(archive, path)
            arrays = {name: archive.read(name) for name in archive.names if name not in ("about", "checksum")}
        N, M, P = samples.shape
        if about["fingerprint"] != self.fingerprint or about["shape"] != [N, M, P]:
            raise ValueError(
                f"{self.folder} holds the checkpoint of another problem: choose another folder, or delete it"
            )
        dtype = np.dtype(about["dtype"])
        if set(about["digests"]) != set(arrays) or any(_digest(a) != about["digests"][n] for n, a in arrays.items()):
            raise ValueError(f"{path} is damaged: its digests do not fit. {ADVICE}")
        if any(name not in arrays or arrays[name].shape != (N, M) for name in ("T2", "W")):
            raise ValueError(f"{path} is damaged: it lacks its weights. {ADVICE}")
        be = samples.backend
        memory = {n.removeprefix("memory."): a for n, a in arrays.items() if n.startswith("memory.")}
        W, T2 = (be.asarray(arrays[name], samples.dtype) for name in ("W", "T2"))
        state = State(None, T2, W, about["r"], about["tau"], about["iteration"], memory)
        return state, Columns(str(self.folder), about["parts"], (M, P), dtype), about["iterations"]

    def _about(self, archive: Archive, path: Path) -> dict[str, Any]:
        text, checksum = (str(archive.read(name)) for name in ("about", "checksum"))
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError(f"{path} is damaged: its checksum does not fit. {ADVICE}")
        try:
            about = json.loads(text)
            if about["format"] != FORMAT:
                raise ValueError(
                    f"{path} was written in format {about['format']}, by nettrim "
                    f"{about['versions'].get('nettrim')}; this version reads format {FORMAT}"
                )
            _check(about)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no checkpoint: {error!r}. {ADVICE}") from error
        return about

    def discard(self) -> None:
        """Delete the checkpoint: the solve has ended. The folder goes if nothing else is in it."""
        (self.folder / STATE).unlink(missing_ok=True)
        self._clear([])
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _committed(self) -> list[dict[str, Any]]:
        """Records of the checkpoint that is there."""
        path = self.folder / STATE
        if not path.exists():
            return []
        with open_npz(path) as archive:
            return self._about(archive, path)["parts"]

    def _clear(self, records: list[dict[str, Any]]) -> None:
        """Delete the files that belong to no checkpoint: of the one before, or of one that was not finished."""
        named = {_part(self.folder, record).name for record in records}
        for pattern in ("samples-*-*-*.npz", ".samples-*.tmp", f".{STATE}.*.tmp"):
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    path.unlink(missing_ok=True)


#: what a user can do
ADVICE = "Delete the folder to begin again."


def _check(about: dict[str, Any]) -> None:
    """That numbers are numbers and the parts make up all samples."""
    if not all(math.isfinite(about[name]) and about[name] > 0 for name in ("r", "tau")):
        raise TypeError("r and tau must be positive")
    at = 0
    for record in about["parts"]:
        first, last, width, digests = (record[name] for name in ("first", "last", "width", "digests"))
        numbers = (first, last, width, about["iteration"], about["iterations"])
        if not all(isinstance(n, int) for n in numbers) or first != at or not first < last or width < 1:
            raise TypeError("its parts do not follow each other")
        if len(digests) != -(-(last - first) // width) or not str(record["stamp"]).replace("-", "").isalnum():
            raise TypeError("its parts are not whole")
        at = last
    if at != about["shape"][2]:
        raise TypeError("its parts do not make up all samples")

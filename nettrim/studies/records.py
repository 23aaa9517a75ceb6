"""Records of a study as JSON lines: one appended for each finished piece of work, so that a stopped study goes on."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nettrim import __version__
from nettrim.report import to_json, write_atomically
from nettrim.studies.pieces import Clock

__all__ = ["Records", "environment", "interval"]

_PACKAGES = ("numpy", "scipy", "numba", "torch", "scikit-learn")


class Records:
    """The records in a file. Each has a key, made of its first fields, and is written once.

    Parameters
    ----------
    path : path
        Created if it is not there. A last line that was cut off is dropped.
    key : iterable of str
        Names of the fields that tell records apart.
    clock : Clock, optional
        Asked after each record, and wherever else a study has all that it did on disk. Default: no end.
    """

    def __init__(self, path: str | os.PathLike[str], key: Iterable[str], clock: Clock | None = None):
        self.path, self.key = Path(path), tuple(key)
        self.clock = clock or Clock()
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self.rows = self._read()

    def _read(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines()
        rows = []
        for k, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if k < len(lines) - 1:
                    raise ValueError(f"line {k + 1} of {self.path} is not JSON: {error}") from error
        return rows

    def _of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.key)

    def find(self, **fields: Any) -> dict[str, Any] | None:
        """The record with these fields, or None."""
        wanted = self._of(fields)
        return next((row for row in self.rows if self._of(row) == wanted), None)

    def add(self, **fields: Any) -> dict[str, Any]:
        """Append a record, with the environment that it was made in.

        Raises
        ------
        ValueError
            There is one with this key.
        Paused
            The record is written, and the time is up.
        """
        if self.find(**fields) is not None:
            raise ValueError(f"{self.path} has a record of {self._of(fields)} already")
        row = json.loads(to_json({**fields, "environment": environment()}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not (self.rows and self.path.read_bytes().endswith(b"\n")):
            # a run that was killed left a part of its last line
            with write_atomically(self.path) as whole:
                whole.write("".join(json.dumps(earlier) + "\n" for earlier in self.rows).encode())
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self.clock.check()
        return row


def environment() -> dict[str, Any]:
    """Date, versions, processor and threads; the commit if this is a checkout."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **_fixed()}


@cache
def _fixed() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    query = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "nettrim": __version__,
        "commit": commit,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **versions,
    }


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; NaN for a single value.

    >>> from nettrim.studies.records import interval
    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)
    (2.0, 2.484)
    """
    from scipy.stats import t

    numbers = list(values)
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1))
    return mean, float(t.ppf(0.975, len(numbers) - 1)) * deviation / math.sqrt(len(numbers))

"""Studies in pieces: a time that they have, and parts of a record that are done once.

A study that may be stopped asks its clock wherever everything that was done is on disk. The clock raises `Paused` when
what comes next would not end in time, as far as the longest wait between two questions tells.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettrim.report import to_json

if TYPE_CHECKING:
    from torch import nn

    from nettrim.privacy.checkpoints import Checkpoint
    from nettrim.studies.records import Records

__all__ = ["UNIT", "Clock", "Paused", "Units"]

#: the key of the records that keep parts of a record
UNIT = ("of", "unit")


class Paused(Exception):
    """The time is up, and all that was done is on disk: the same run goes on from there."""


class Clock:
    """The time of a piece.

    Parameters
    ----------
    minutes : float, optional
        Default: no end.
    now : callable
        Seconds.

    Raises
    ------
    ValueError
        `minutes` is not positive.
    """

    def __init__(self, minutes: float | None = None, now: Callable[[], float] = time.monotonic):
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive; got {minutes!r}")
        self.seconds = math.inf if minutes is None else 60 * minutes
        self._now = now
        self._began = self._last = now()
        self._longest = 0.0

    def check(self) -> None:
        """Everything that was done is on disk.

        Raises
        ------
        Paused
            Another part as long as the longest so far would not end in time. A piece does one part at the least.
        """
        now = self._now()
        self._longest, self._last = max(self._longest, now - self._last), now
        if now - self._began + self._longest > self.seconds:
            raise Paused


class Units:
    """Parts of one record that is being made, each done once, and kept until the record is complete.

    Parameters
    ----------
    kept : Records
        With the key `UNIT`; its clock is asked after each part.
    of : str
        Names the record.
    folder : Path
        For the states of parts that are not finished, and for networks.
    """

    def __init__(self, kept: Records, of: str, folder: Path):
        self.kept, self.of, self.folder = kept, of, folder

    def once(self, unit: str, make: Callable[[Checkpoint], Any]) -> Any:
        """What `make` gives, as JSON has it, from the file if it was made in an earlier piece.

        It may keep the state of unfinished work in the checkpoint that it is given.
        """
        found = self.kept.find(of=self.of, unit=unit)
        if found is None:
            state = self._state(unit)
            value = make(state)
            try:
                found = self.kept.add(of=self.of, unit=unit, value=value)
            finally:
                state.path.unlink(missing_ok=True)
        return found["value"]

    def network(self, unit: str, model: nn.Module, work: Callable[[nn.Module, Checkpoint], Any]) -> Any:
        """What `work` returns, as JSON has it, after it has changed the model; or both from the file."""
        from nettrim.privacy.checkpoints import read, write

        path = self._path(unit, "network.safetensors")
        if not path.exists():
            state = self._state(unit)
            value = work(model, state)
            write(path, {"value": json.loads(to_json(value))}, {"model": model.state_dict()})
            state.path.unlink(missing_ok=True)
            self.kept.clock.check()
        parts, about = read(path, {})
        model.load_state_dict(parts["model"])
        return about["value"]

    def place(self, unit: str) -> Path:
        """A folder for a part that keeps its own state."""
        return self._path(unit, "folder")

    def forget(self) -> None:
        """Delete networks and folders: the record is complete."""
        for path in self.folder.glob(f"{self._name()} *"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _state(self, unit: str) -> Checkpoint:
        from nettrim.privacy.checkpoints import Checkpoint

        return Checkpoint(self._path(unit, "state.safetensors"), {}, self.kept.clock.check)

    def _path(self, unit: str, kind: str) -> Path:
        return self.folder / f"{self._name()} {hashlib.sha256(unit.encode()).hexdigest()[:10]}.{kind}"

    def _name(self) -> str:
        return hashlib.sha256(self.of.encode()).hexdigest()[:10]

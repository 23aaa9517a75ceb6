"""The state of a training on disk: after every epoch, and within one that takes long, so that it goes on bit for bit.

A file holds tensors in named parts (weights, momenta, states of generators, ...), and as JSON in its metadata what made
them and how far they are. It takes its place whole or not at all, nothing in it is ever unpickled, and a file of
another configuration is refused. When a state is written depends on the clock; what a training ends with does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.report import write_atomically

__all__ = ["Checkpoint", "Parts", "digest", "generators", "put_back", "read", "state_digest", "write"]

#: tensors by their names, by the names of the parts
Parts = Mapping[str, Mapping[str, torch.Tensor]]
_KEY = "nettrim.checkpoint"


@dataclass
class Checkpoint:
    """Where a training keeps its state, and how often.

    Attributes
    ----------
    path : Path
        Of the file; its folder is created with it.
    about : dict
        What makes the training, as JSON; a file of another one is refused.
    written : callable, optional
        Called after each state that was written. What it raises stops the training, which goes on from there.
    seconds : float
        After so long within an epoch, the state is written before its end.
    """

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    written: Callable[[], Any] | None = None
    seconds: float = 60.0

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last state is so old that the next is to be written."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, parts: Parts, **where: Any) -> None:
        """Write a state, and how far it is."""
        write(self.path, {**self.about, **where}, parts)
        self._last = time.monotonic()
        if self.written is not None:
            self.written()

    def load(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
        """Parts of the last state and how far it is; None if there is none.

        Raises
        ------
        ValueError
            As `read`.
        """
        return read(self.path, self.about) if self.path.exists() else None


def write(path: str | os.PathLike[str], about: Mapping[str, Any], parts: Parts) -> None:
    """Tensors in parts, with `about` inside, as one safetensors file."""
    from safetensors.torch import save

    tensors = {
        f"{part} {name}": value.detach().cpu().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(save(tensors, {_KEY: json.dumps(about)}))


def read(
    path: str | os.PathLike[str], about: Mapping[str, Any]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Parts of a file that `write` made, on the CPU, and what is written in it.

    Raises
    ------
    ValueError
        It is damaged, or of another configuration.
    """
    from safetensors import SafetensorError, safe_open

    parts: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})[_KEY])
            for key in file.keys():
                part, name = key.split(" ", 1)
                parts.setdefault(part, {})[name] = file.get_tensor(key)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"folder: {path} is no state of a training, or is damaged ({error})") from error
    # as JSON has them: tuples are lists
    wanted = json.loads(json.dumps(dict(about)))
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise ValueError(f"folder: {path} is of another configuration, in {', '.join(other)}; choose another folder")
    return parts, found


def digest(*arrays: np.ndarray) -> str:
    """A fingerprint of arrays, their shapes and dtypes."""
    found = hashlib.sha256()
    for values in arrays:
        found.update(f"{values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def state_digest(model: nn.Module) -> str:
    """A fingerprint of a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def generators(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's global generators that a training on a device draws from."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def put_back(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `generators` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)

"""What `nettrim prune` works on: a model that a function builds, its weights, and samples from a file."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nettrim import files
from nettrim.extras import install
from nettrim.files import Refused
from nettrim.report import to_json, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FILE", "Job", "arguments"]

#: in the folder of a run
FILE = "job.json"


def arguments(batch: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch is the model's positional arguments."""
    return batch, {}


@dataclass(frozen=True)
class Job:
    """Where a model and its samples come from.

    Attributes
    ----------
    model : str
        "package.module:name" or "file.py:name": a function without arguments that returns a module, or a module.
    folder : str
        Where the command was given; modules are looked for there first.
    weights : str or None
        A safetensors file with the model's state; None for what the function gives.
    data : str
        An npz file, or an npy file with one array, samples along the first axis.
    inputs : tuple of str
        Arrays of it, in the order of the model's arguments; empty for "X", or the only one.
    batch_size : int
    """

    model: str
    folder: str
    weights: str | None
    data: str
    inputs: tuple[str, ...] = ()
    batch_size: int = 256

    def build(self) -> nn.Module:
        """The model with its weights.

        Raises
        ------
        Refused
            It cannot be imported or built, or the weights do not fit; the message names the option.
        """
        found = _imported(self.model, Path(self.folder))
        nn = _torch().nn
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise Refused(f"{self.model} is neither a module nor a function that builds one: {found!r}")
            with _blamed(f"{self.model}()"):
                found = found()
        if not isinstance(found, nn.Module):
            raise Refused(f"{self.model}() must return a torch.nn.Module; it returned {type(found).__name__}")
        if self.weights is not None:
            _load_weights(found, Path(self.weights))
        return found

    def batches(self, model: nn.Module) -> list[tuple[torch.Tensor, ...]]:
        """The samples; the model is run on the first batch, so that what does not fit is told at once.

        Raises
        ------
        Refused
            The file or its arrays cannot be used, or the model fails on them.
        """
        torch = _torch()
        arrays = self._arrays()
        kept = [p.dtype for p in model.parameters() if p.is_floating_point()]
        dtype = kept[0] if kept else torch.float32
        try:
            tensors = [torch.from_numpy(np.asarray(a, a.dtype.newbyteorder("="))) for a in arrays.values()]
        except TypeError as error:
            raise Refused(f"{self.data} holds what PyTorch has no tensors for: {error}") from error
        batches = []
        for start in range(0, len(tensors[0]), self.batch_size):
            part = [t[start : start + self.batch_size] for t in tensors]
            batches.append(tuple(t.to(dtype) if t.is_floating_point() else t for t in part))
        given = ", ".join(f"{name} {tuple(a.shape[1:])} {a.dtype}" for name, a in arrays.items())
        modes = [(module, module.training) for module in model.modules()]
        with _blamed(f"the model, on the first samples of {self.data} ({given}),"), torch.no_grad():
            model.eval()(*(t[:2] for t in batches[0]))
        for module, training in modes:
            module.training = training
        return batches

    def _arrays(self) -> dict[str, np.ndarray]:
        path = Path(self.data)
        if path.suffix == ".npy":
            if self.inputs:
                raise Refused(f"--inputs names arrays of an .npz file; {path} holds one array")
            try:
                # copied where it is written to, which it never is: torch warns of arrays that cannot be
                arrays = {"X": np.load(path, mmap_mode="c", allow_pickle=False)}
            except FileNotFoundError as error:
                raise Refused(f"{path} does not exist") from error
            except (ValueError, EOFError, OSError) as error:
                raise Refused(f"{path} is not a readable .npy file: {error}") from error
        else:
            names = self.inputs or (_only(path),)
            arrays = files.load(path, required=names, optional=())
        first = next(iter(arrays))
        for name, a in arrays.items():
            if a.dtype.kind not in "fiub" or a.ndim < 1:
                raise Refused(f"{name} in {path} must hold numbers, samples along its first axis; got {a.dtype}")
            if len(a) == 0:
                raise Refused(f"{name} in {path} is empty")
            if len(a) != len(arrays[first]):
                raise Refused(f"{name} in {path} has {len(a)} samples, {first} {len(arrays[first])}")
            if a.dtype.kind == "f" and not np.isfinite(a).all():
                raise Refused(f"{name} in {path} has entries that are infinite or NaN")
        return arrays

    def elsewhere(self, model: str | None, weights: Path | None, data: Path | None) -> Job:
        """The job with what has moved since; a model that is named anew is looked for in the working directory."""
        changes: dict[str, Any] = {"model": model, "folder": str(Path.cwd())} if model is not None else {}
        if weights is not None:
            changes["weights"] = str(weights.resolve())
        if data is not None:
            changes["data"] = str(data.resolve())
        return replace(self, **changes)

    def write(self, run: Path) -> None:
        """Keep it in the folder of a run."""
        with write_atomically(run / FILE) as file:
            file.write(to_json(asdict(self)).encode())

    @classmethod
    def read(cls, run: Path, trusted: bool = False) -> Job:
        """The job of a run; unless trusted, none whose code is in the folder of the run, which may be another's.

        Raises
        ------
        Refused
            The folder is not one of a run.
        """
        path = run / FILE
        if not path.exists():
            raise Refused(f"{run} is not the folder of a run of nettrim prune: it has no {FILE}")
        try:
            found = json.loads(path.read_text())
            job = cls(**found)
            job = replace(job, inputs=tuple(job.inputs))
            inside = Path(job.folder, job.model.rpartition(":")[0]).resolve().is_relative_to(run.resolve())
            if not trusted and (not Path(job.folder).is_absolute() or inside):
                raise Refused(
                    f"{path} names code in the folder of the run itself, which nettrim prune does not write: if you "
                    "trust it, name the model with --model"
                )
            names = (job.model, job.folder, job.data, *job.inputs, job.weights or "")
            if not all(isinstance(value, str) for value in names) or not isinstance(job.batch_size, int):
                raise TypeError("values of wrong types")
        except (ValueError, TypeError) as error:
            raise Refused(f"{path} is not what nettrim prune writes: {error}") from error
        return job


def _torch() -> Any:
    try:
        import safetensors
        import torch
    except ImportError as error:
        raise Refused(f"networks need PyTorch ({error}): {install('torch')}") from error
    del safetensors
    return torch


def _imported(spec: str, folder: Path) -> Any:
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise Refused(f'{spec!r} is not a model: write "package.module:function" or "file.py:function"')
    path = folder / where
    is_file = where.endswith(".py")
    if is_file and not path.is_file():
        raise Refused(f"{path} does not exist")
    # what the model's code imports, now and when it is built, lies beside it, as for `python file.py`
    beside = str(path.parent if is_file else folder)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    if is_file:
        # under a name of its own: a file may be called like a module that others use
        known = f"_model_{path.stem}"
        described = importlib.util.spec_from_file_location(known, path)
        module = importlib.util.module_from_spec(described)
        sys.modules[known] = module
        with _blamed(f"importing {path}"):
            described.loader.exec_module(module)
    else:
        with _blamed(f"importing {where}"):
            module = importlib.import_module(where)
    if not hasattr(module, name):
        raise Refused(f"{where} has no {name!r}")
    return getattr(module, name)


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise Refused(f"--weights: {path} does not exist")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise Refused(
            f"--weights: {path} is not a safetensors file ({error}). Pickled weights are not read; convert them with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise Refused(f"--weights: {path} does not fit the model: {error}") from error


def _only(path: Path) -> str:
    """The array to take where none is named."""
    held = files.names(path)
    if "X" in held or len(held) == 1:
        return "X" if "X" in held else held[0]
    raise Refused(f"{path} holds {', '.join(held) or 'nothing'}: name the model's inputs with --inputs")


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Errors of the user's own code as one line, with the place where they were raised."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise Refused(f"{what} failed: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})") from error

"""What goes into and comes out of the layers of a model, batch by batch."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.torch.watch import tensors_in, undisturbed

__all__ = [
    "Store",
    "arguments_of",
    "batches_of",
    "check_arguments",
    "digest",
    "evaluating",
    "head",
    "length",
    "observe",
    "raw",
    "split",
    "state_digest",
]

#: arguments of a batch for the model: positional ones and keywords
Arguments = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with for a batch: a tensor itself, the first of a tuple or list, a mapping as keywords.

    Raises
    ------
    TypeError
        It is something else, an empty sequence, or begins with what looks like labels.
    """
    if isinstance(batch, torch.Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], torch.Tensor):
        if batch[0].ndim <= 1 and len(batch) > 1 and isinstance(batch[1], torch.Tensor) and batch[1].ndim > 1:
            raise TypeError(
                f"the first tensor of a batch, of shape {tuple(batch[0].shape)}, looks like labels: pass arguments=, "
                "which makes (args, kwargs) of a batch, such as lambda batch: ((batch[1],), {})"
            )
        return (batch[0],), {}
    raise TypeError(
        f"a batch must be a tensor, a tuple that begins with one, or a mapping; got {type(batch).__name__}: "
        "Pass arguments=, which makes (args, kwargs) of a batch"
    )


def batches_of(loader: Iterable[Any], samples: int | None = None) -> list[Any]:
    """The batches, kept: a loader may shuffle, and every layer must see the same samples.

    Parameters
    ----------
    loader : iterable of batches
    samples : int, optional
        Stop when there are so many; the last batch is cut.

    Raises
    ------
    TypeError
        `loader` is not iterable, or is a single tensor.
    ValueError
        It is empty, or gives NaN, or `samples` is below 1.
    """
    if isinstance(loader, torch.Tensor) or not isinstance(loader, Iterable):
        raise TypeError(f"loader must be an iterable of batches; got {type(loader).__name__}: wrap one batch in a list")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    kept: list[Any] = []
    count = 0
    for batch in loader:
        size = length(batch)
        if samples is not None and count + size > samples:
            batch, size = _cut(batch, 0, samples - count), samples - count
        # infinite entries may be meant, in a mask of attention
        if any(t.is_floating_point() and t.isnan().any() for t in tensors_in(batch, objects=False)):
            raise ValueError(f"loader gave NaN, in batch {len(kept)} (counted from 0)")
        kept.append(batch)
        count += size
        if samples is not None and count >= samples:
            break
    if count == 0:
        raise ValueError("loader gave no samples")
    return kept


def split(batches: list[Any], holdout: float) -> tuple[list[Any], list[Any]]:
    """Batches to calibrate on, and the last ones, held back: at least that fraction of the samples, unless it is 0."""
    if holdout == 0:
        return batches, []
    left = round(holdout * sum(map(length, batches)))
    used = list(batches)
    back: list[Any] = []
    while left > 0:
        last = used.pop()
        size = length(last)
        if size > left:
            used.append(_cut(last, 0, size - left))
            last = _cut(last, size - left, size)
        back.insert(0, last)
        left -= length(last)
    if not used:
        raise ValueError(f"holdout {holdout} leaves no samples to calibrate on")
    return used, back


def head(batches: list[Any], samples: int) -> list[Any]:
    """The first samples of batches."""
    kept, left = [], samples
    for batch in batches:
        if left <= 0:
            break
        kept.append(_cut(batch, 0, left) if length(batch) > left else batch)
        left -= length(batch)
    return kept


def _tensors(batch: Any) -> list[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else []
    return [part for part in parts if isinstance(part, torch.Tensor) and part.ndim > 0]


def length(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    found = _tensors(batch)
    if not found:
        raise TypeError(f"a batch of type {type(batch).__name__} holds no tensor with a batch dimension")
    return len(found[0])


def _cut(batch: Any, start: int, stop: int) -> Any:
    """Samples start..stop of a batch."""
    whole_length = length(batch)

    def part(value: Any) -> Any:
        whole = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == whole_length
        return value[start:stop] if whole else value

    if isinstance(batch, torch.Tensor):
        return part(batch)
    if isinstance(batch, Mapping):
        return {name: part(value) for name, value in batch.items()}
    return tuple(part(value) for value in batch)


def raw(tensor: torch.Tensor) -> bytes:
    """Dtype, shape and bits."""
    tensor = tensor.detach().cpu().contiguous()
    return str((tensor.dtype, tuple(tensor.shape))).encode() + tensor.flatten().view(torch.uint8).numpy().tobytes()


def digest(batches: list[Any], arguments: Arguments) -> str:
    """Of what a model is called with on these batches, in their order."""
    hashed = hashlib.sha256()
    for batch in batches:
        args, kwargs = arguments(batch)
        for value in (*args, *kwargs.values()):
            hashed.update(raw(value) if isinstance(value, torch.Tensor) else repr(value).encode())
    return hashed.hexdigest()


def check_arguments(model: Any, holdout: float, targets: Any) -> None:
    """What can be told of them before the model runs."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if isinstance(holdout, bool) or not 0 <= holdout < 1:
        raise ValueError(f"holdout must be in [0, 1); got {holdout}")
    if isinstance(targets, str):
        raise TypeError(f"targets must be a list of patterns; got the string {targets!r}")


def state_digest(model: nn.Module) -> str:
    """Of a model's weights and buffers, with their names."""
    hashed = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hashed.update(name.encode() + raw(tensor))
    return hashed.hexdigest()


class _Reached(Exception):
    """The layer has been reached: what comes after it is not needed."""


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Context in which models are in evaluation mode, without gradients, and after which nothing of that is left."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(undisturbed(model))
        yield


def observe(
    model: nn.Module,
    modules: list[nn.Module],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    what: str,
    stop: bool = False,
) -> list[list[np.ndarray]]:
    """Inputs or outputs of some modules on one batch, in the order of their calls, copied to the host.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    modules : list of nn.Module
    arguments : (tuple, dict)
        The model's.
    what : {"inputs", "outputs"}
    stop : bool
        Whether to leave the model after the last call of the only module; it must run once.

    Returns
    -------
    list of list of array
        For each module, one a call; float32, or float64 where the model has it.
    """
    found: list[list[np.ndarray]] = [[] for _ in modules]

    def hook_of(k: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], outputs: Any = None) -> None:
            # copied at once: what follows may work in place
            seen = outputs if what == "outputs" else inputs[0] if inputs else keywords["input"]
            found[k].append(_to_numpy(seen))
            if stop:
                raise _Reached

        return hook

    handles = []
    try:
        for k, module in enumerate(modules):
            register = module.register_forward_pre_hook if what == "inputs" else module.register_forward_hook
            handles.append(register(hook_of(k), with_kwargs=True))
        with contextlib.suppress(_Reached):
            model(*arguments[0], **arguments[1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _to_numpy(a: torch.Tensor) -> np.ndarray:
    a = a.detach().cpu()
    return (a if a.dtype == torch.float64 else a.to(torch.float32)).numpy().copy()


class Store:
    """Arrays put one after the other along the first dimension: in memory up to a budget, then in a file.

    Parameters
    ----------
    budget : float
        Bytes to hold in memory.
    folder : path, optional
        Of the file, which is removed on `close`; default that of the system's temporary files.
    """

    def __init__(self, budget: float, folder: Any = None):
        self.budget, self.folder = budget, folder
        self._parts: list[np.ndarray] = []
        self._bytes = 0
        self._file: Any = None
        self._length = 0

    def add(self, a: np.ndarray) -> None:
        """Append; the shapes must agree but for the first dimension."""
        self._length += len(a)
        self._bytes += a.nbytes
        if self._file is None and self._bytes > self.budget:
            self._file = tempfile.NamedTemporaryFile(dir=self.folder, prefix="nettrim-", suffix=".bin")
            for part in self._parts:
                part.tofile(self._file)
            self._like, self._parts = a[:0], []
        if self._file is None:
            self._parts.append(a)
        else:
            np.ascontiguousarray(a).tofile(self._file)

    @property
    def in_memory(self) -> bool:
        """Whether all of it is in memory."""
        return self._file is None

    def array(self) -> np.ndarray:
        """All of it; a memory map of the file."""
        if self._file is None:
            if len(self._parts) > 1:
                self._parts = [np.concatenate(self._parts)]
            return self._parts[0]
        self._file.flush()
        shape = (self._length, *self._like.shape[1:])
        return np.memmap(self._file.name, self._like.dtype, "r", shape=shape)

    def close(self) -> None:
        """Remove the file."""
        self._parts = []
        if self._file is not None:
            self._file.close()
            self._file = None

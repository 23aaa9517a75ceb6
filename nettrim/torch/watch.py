"""A run of a model that is watched: which layers run, and what uses their outputs.

The model is run once on an example, and every operation that PyTorch dispatches is watched for the outputs of layers
among its arguments. All ways to write a ReLU (function, method, module, in place, `clamp`) are one of a few operations
there, and dropout in eval mode and `Identity` are none. `torch.fx.symbolic_trace` is not used: it cannot follow control
flow that depends on data, sees proxies where code asks for a value or a type, and does not know what a function of
somebody else does inside. A run has none of these limits, and its one limit, that it sees the branches that the
example takes, is fx's too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nettrim.torch.modules import is_plain, is_unsupported, own_tensors

__all__ = ["RELU", "Watch", "copied", "tensors_in", "undisturbed", "watched"]

_aten = torch.ops.aten
#: operations that are a ReLU if their other arguments, of which there may be more, are the ones given
_RELUS = {
    _aten.relu.default: (),
    _aten.relu_.default: (),
    _aten.clamp.default: (0, None),
    _aten.clamp_.default: (0, None),
    _aten.clamp_min.default: (0,),
    _aten.clamp_min_.default: (0,),
    _aten.threshold.default: (0, 0),
    _aten.threshold_.default: (0, 0),
}
#: operations that put every element somewhere, once: a ReLU is the same before and after them
_RESHAPES = {
    *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default, _aten._reshape_alias.default),
    *(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default),
    *(_aten.transpose.int, _aten.permute.default, _aten.t.default),
    *(_aten.alias.default, _aten.detach.default, _aten.clone.default),
}
#: ways to read a tensor that are not, or not all, dispatched
_READS = {
    *(torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist, torch.Tensor.data_ptr, torch.Tensor.__dlpack__),
    *(torch.Tensor.untyped_storage, torch.Tensor.storage, torch.Tensor.__reduce_ex__),
    torch.Tensor.__cuda_array_interface__.__get__,
}
#: the follower of a layer that is a ReLU
RELU = object()


_aten = torch.ops.aten


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Run a model in eval mode, without gradients, and leave no trace of it, whatever happens.

    Modes, the values of buffers and the states of the random number generators are put back. Attention takes its plain
    path, which calls the layers; the fused one reads their weights.

    Parameters
    ----------
    model : torch.nn.Module
    """
    # flags and not eval(): what a module does in an overridden train() would have to be undone
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    held = [*model.parameters(), *model.buffers()]
    devices = sorted({t.device.index for t in held if t.device.type == "cuda" and t.device.index is not None})
    fast = torch.backends.mha.get_fastpath_enabled()
    python, numpy_ = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that models may draw from
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.backends.mha.set_fastpath_enabled(False)
            for module, _ in modes:
                module.training = False
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(python)
        np.random.set_state(numpy_)  # noqa: NPY002
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for place, name, buffer, values in buffers:
                place[name] = buffer
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


@dataclass(eq=False)
class _Call:
    """One run of a layer."""

    module: torch.nn.Module
    ndim: int = 0
    #: what uses the output: RELU, a batch norm's module, or None for anything else and for nothing
    follower: Any = None
    #: more than one use, or one that is neither
    spoiled: bool = False


@dataclass
class _Passed:
    """A tensor with the elements of a layer's output. Held, so that no other tensor can get its id."""

    tensor: torch.Tensor
    call: _Call
    direct: bool
    used: bool = False


@dataclass(eq=False)
class _Reads(TorchFunctionMode):
    """Sees reads of tensors that are not dispatched."""

    watch: Watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            for passed in self.watch.among((args, kwargs)):
                self.watch.spoil(passed.call)
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Sees every operation, and which outputs of layers it uses."""

    # flex attention and the like: one use, which is not a ReLU
    supports_higher_order_operators = True

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.counts: Counter[torch.nn.Module] = Counter()
        #: layers whose parameters are used while they do not run
        self.outside: set[torch.nn.Module] = set()
        self._passed: dict[int, _Passed] = {}
        self._running: list[torch.nn.Module] = []
        self._owners: dict[int, list[torch.nn.Module]] = {}
        for module in modules:
            for tensor in own_tensors(module):
                self._owners.setdefault(id(tensor), []).append(module)

    def enter(self, module: torch.nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        self._running.append(module)

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Forward hook; the first, so that what other hooks do counts as a use."""
        # a module that the model left by an exception, and caught, never came here
        while self._running and self._running.pop() is not module:
            pass
        self.counts[module] += 1
        if isinstance(module, _BatchNorm):
            return
        call = _Call(module)
        self.calls.append(call)
        if isinstance(output, torch.Tensor):
            call.ndim = output.ndim
            self._passed[id(output)] = _Passed(output, call, direct=True)

    def among(self, values: Any) -> list[_Passed]:
        """Outputs of layers in nested containers."""
        found = {id(t): self._passed[id(t)] for t in tree_leaves(values) if id(t) in self._passed}
        return list(found.values())

    def spoil(self, call: _Call) -> None:
        """Nothing that can still come makes this the single use by a ReLU."""
        call.spoiled, call.follower = True, None
        # large, and no longer of interest
        self._passed = {key: passed for key, passed in self._passed.items() if passed.call is not call}

    def escape(self, values: Iterable[torch.Tensor]) -> None:
        """These outlive the run."""
        for tensor in values:
            if id(tensor) in self._passed:
                self.spoil(self._passed[id(tensor)].call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            for owner in self._owners.get(id(tensor), ()):
                if owner not in self._running:
                    self.outside.add(owner)
        used = self.among((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for passed in used:
            self._use(passed, func, args, result)
        return result

    def _use(self, passed: _Passed, func: Any, args: Any, result: Any) -> None:
        call = passed.call
        if passed.used or not args or args[0] is not passed.tensor:
            self.spoil(call)
            return
        passed.used = True
        if _is_relu(func, args):
            call.follower = RELU
            if result is passed.tensor:
                # in place: what uses it from here on uses the outputs of the ReLU
                del self._passed[id(result)]
        elif func in _RESHAPES:
            self._passed[id(result)] = _Passed(result, call, direct=False)
        elif self._running and passed.direct and _is_batch_norm(self._running[-1], func):
            call.follower = self._running[-1]
        else:
            self.spoil(call)


def _is_relu(func: Any, args: Any) -> bool:
    if func not in _RELUS:
        return False
    # trailing arguments that have their default are not passed on: clamp(x, 0) is clamp(x, 0, None)
    given, expected = tuple(args[1:]), _RELUS[func]
    return given + (None,) * (len(expected) - len(given)) == expected


def _is_batch_norm(module: torch.nn.Module, func: Any) -> bool:
    return isinstance(module, _BatchNorm) and "batch_norm" in str(func)


def watched(
    model: torch.nn.Module, example: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[Watch, list[torch.Tensor]]:
    """A run with what was seen, and its outputs."""
    watched = [m for m in model.modules() if is_plain(m) or is_unsupported(m) or isinstance(m, _BatchNorm)]
    watch = Watch(watched)
    handles = []
    try:
        for module in watched:
            handles.append(module.register_forward_pre_hook(watch.enter, prepend=True))
            handles.append(module.register_forward_hook(watch.leave, prepend=True))
        with undisturbed(model):
            args, keywords = copied(example, kwargs)
            with _Reads(watch), watch:
                output = model(*args, **keywords)
            outputs = tensors_in(output)
            watch.escape(outputs)
            for module in model.modules():
                watch.escape(tensors_in(vars(module), objects=False))
            # the model may return its own parameters
            return watch, [tensor.clone() for tensor in outputs]
    finally:
        for handle in handles:
            handle.remove()


def copied(example: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Arguments that the model may change in place."""
    if not isinstance(example, (tuple, list)):
        raise TypeError(f"example must be a tuple of the model's positional arguments; got {type(example).__name__}")
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (tuple(example), dict(kwargs or {})))


def tensors_in(value: Any, objects: bool = True) -> list[torch.Tensor]:
    """Tensors in nested containers, in order; with `objects`, in attributes of objects that are no modules too."""
    found, seen, left = [], set(), [value]
    while left:
        item = left.pop()
        if isinstance(item, torch.Tensor):
            found.append(item)
            continue
        # containers may hold themselves
        if id(item) in seen or isinstance(item, (str, bytes, np.ndarray, torch.nn.Module, type)):
            continue
        seen.add(id(item))
        inner: list[Any] = []
        if isinstance(item, Mapping):
            inner = list(item.values())
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            inner = list(item)
        elif objects and dataclasses.is_dataclass(item):
            inner = [getattr(item, f.name) for f in dataclasses.fields(item)]
        elif objects and hasattr(item, "__dict__"):
            inner = list(vars(item).values())
        left += reversed(inner)
    return found

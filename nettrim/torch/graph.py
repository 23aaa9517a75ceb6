"""What a PyTorch model is made of: its layers, what follows each of them, and batch norms folded into them.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nettrim.geometry import Geometry
from nettrim.layer import Layer
from nettrim.network import matches

__all__ = ["Target", "find_targets", "fold_batch_norm", "layer_of", "undisturbed"]

_KINDS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)

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
    torch.Tensor.__cuda_array_interface__.__get__,  # type: ignore[attr-defined]
}
#: deviation of the model's outputs that folding may make, relative to the largest entry of each: rounding of the folded
#: weights, a few units in the last place, with room for what a deep network makes of it
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Target:
    """A layer that can be pruned, as it stands in a model.

    Parameters
    ----------
    name : str
        Dotted, as in `named_modules`; of a module with several names, the first.
    module : torch.nn.Module
        A Linear, Conv1d or Conv2d, or of a subclass that computes the same.
    relu : bool
        Whether a ReLU is all that ever uses its outputs.
    calls : int
        How often it runs in one forward pass.
    """

    name: str
    module: torch.nn.Module
    relu: bool
    calls: int


def find_targets(
    model: torch.nn.Module,
    example: tuple,
    kwargs: dict[str, Any] | None = None,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
) -> list[Target]:
    """Layers of a model that fit the patterns, in order of their first run on the example.

    The model runs once in eval mode. A layer counts as followed by a ReLU if, in each of its calls, its output is used
    once, and by a ReLU, with nothing between but reshapes and what is the identity in eval mode; everything else
    (other activations, sums, several uses, an output that the model returns or keeps in an attribute) counts as linear.
    A batch norm between the two is something else: see `fold_batch_norm`.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was: modes, hooks, buffers and random numbers, also after an error.
    example : tuple
        Positional arguments of a forward pass.
    kwargs : dict, optional
        Its keyword arguments.
    targets, ignore : sequence of str
        Patterns of names, see `nettrim.network.matches`. Layers that only the pattern "*" fits are left out if they
        do not run.

    Returns
    -------
    list of Target

    Raises
    ------
    TypeError
        `example` is not a tuple, or patterns are a string.
    ValueError
        A pattern that fits no layer; a layer that was asked for and does not run, or that cannot be pruned: a kind or
        padding that is not supported, weights that are not plain parameters of its own. A model with uninitialised
        parameters.
    """
    for what, patterns in (("targets", targets), ("ignore", ignore)):
        if isinstance(patterns, str):
            raise TypeError(f"{what} must be a list of patterns; got the string {patterns!r}")
    names = _names(model)
    candidates = {module: known for module, known in names.items() if _is_plain(module) or _is_unsupported(module)}
    listed = ", ".join(repr(known[0]) for known in candidates.values()) or "none"
    for pattern in targets:
        if not any(_fits(known, [pattern]) for known in candidates.values()):
            raise ValueError(f"targets has the pattern {pattern!r}, which fits no layer; there are: {listed}")
    chosen = [m for m, known in candidates.items() if _fits(known, targets) and not _fits(known, ignore)]
    if not chosen:
        raise ValueError(f"targets {list(targets)} without ignore {list(ignore)} leave no layer of: {listed}")

    watch, _ = _watched(model, example, kwargs)
    explicit = [pattern for pattern in targets if pattern != "*"]
    sharing = _sharing(names)
    found = []
    for module in chosen:
        name, count = names[module][0], watch.counts[module]
        if count == 0:
            if _fits(names[module], explicit):
                raise ValueError(
                    f"layer {name!r} never runs on the example (attention reads the weights of its out_proj and does "
                    "not call it); give an example on which it does, or add it to `ignore`"
                )
            continue
        trouble = _trouble(module) or _tying(module, sharing, watch)
        if trouble:
            raise ValueError(f"layer {name!r} {trouble}, or add it to `ignore`")
        followers = [call.follower for call in watch.calls if call.module is module]
        found.append(Target(name, module, all(f is _RELU for f in followers), count))
    if not found:
        raise ValueError(f"no layer runs on the example; there are: {listed}")
    first = {module: k for k, module in reversed(list(enumerate(call.module for call in watch.calls)))}
    return sorted(found, key=lambda target: first[target.module])


def layer_of(target: Target) -> Layer:
    """The layer as arrays, which are copies on the host: float64 stays, everything else becomes float32.

    Parameters
    ----------
    target : Target

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        The module cannot be pruned: a kind or padding that is not supported, or weights that are not plain parameters.
    """
    module: Any = target.module
    trouble = _trouble(module) if _is_plain(module) or _is_unsupported(module) else "is no plain Linear or convolution"
    if trouble:
        raise ValueError(f"layer {target.name!r} {trouble}")
    geometry, groups = None, 1
    if isinstance(module, _ConvNd):
        padding: Any = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        geometry = Geometry(tuple(module.kernel_size), tuple(module.stride), padding, tuple(module.dilation))
        groups = module.groups
    bias = None if module.bias is None else _array(module.bias)
    return Layer(_array(module.weight), bias, target.relu, geometry, groups, target.name)


@torch.no_grad()
def fold_batch_norm(
    model: torch.nn.Module, example: tuple, kwargs: dict[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Fold batch norms into the layers that they follow, in place.

    A BatchNorm1d or 2d with running statistics, which runs once and is all that uses the output of a layer that runs
    once, multiplies each of the layer's outputs by a number and adds another: both go into the layer's weights and
    bias, which is made if there is none, and an Identity takes the place of the batch norm. The model then computes
    what it computes in eval mode; that is checked on the example.

    Parameters
    ----------
    model : torch.nn.Module
        Changed; modes, hooks, other buffers and random numbers are left as they were.
    example : tuple
        Positional arguments of a forward pass.
    kwargs : dict, optional
        Its keyword arguments.

    Returns
    -------
    list of (str, str)
        Names of layer and batch norm of each pair.

    Raises
    ------
    TypeError
        `example` is not a tuple.
    ValueError
        The outputs hold no tensors, so that nothing could be checked, or parameters are uninitialised.
    RuntimeError
        The outputs changed by more than 1e-4 of their largest entry (1e-9 if model and outputs are in float64, 1e-2 and
        5e-2 if anything is in float16 and bfloat16), or the model no longer runs. It is then as it was before.
    """
    names = _names(model)
    with _full_precision():
        watch, before = _watched(model, example, kwargs)
        pairs = _foldable(names, watch)
        if not pairs:
            return []
        if not before:
            raise ValueError("the model's outputs hold no tensors, so that folding could not be checked")
        tensors = [*model.parameters(), *before]
        tolerance = max(_TOLERANCES.get(t.dtype, 0) for t in tensors) or _TOLERANCES[torch.float32]
        # what a fold changes: entries of the weights, bias (entries, or the parameter), and places of the batch norm
        weights = [(layer.weight, layer.weight.clone()) for layer, _ in pairs]
        biases = [(layer, layer.bias, None if layer.bias is None else layer.bias.clone()) for layer, _ in pairs]
        try:
            for layer, norm in pairs:
                _fold(layer, norm)
                for name in names[norm]:
                    _put(model, name, torch.nn.Identity().train(norm.training))
            with undisturbed(model):
                args, keywords = _copied(example, kwargs)
                _compare(before, _tensors(model(*args, **keywords)), tolerance)
        except BaseException as error:
            for weight, values in weights:
                weight.copy_(values)
            for layer, bias, values in biases:
                layer.bias = bias
                if bias is not None:
                    bias.copy_(values)
            for _, norm in pairs:
                for name in names[norm]:
                    _put(model, name, norm)
            if isinstance(error, Exception):
                raise RuntimeError(f"batch norms cannot be folded, the model is as it was: {error}") from error
            raise
    return [(names[layer][0], names[norm][0]) for layer, norm in pairs]


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


# --- watching a run -------------------------------------------------------------------------------------------------

#: the follower of a layer that is a ReLU
_RELU = object()


@dataclass(eq=False)
class _Call:
    """One run of a layer."""

    module: torch.nn.Module
    ndim: int = 0
    #: what uses the output: _RELU, a batch norm's module, or None for anything else and for nothing
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

    watch: _Watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            for passed in self.watch.among((args, kwargs)):
                self.watch.spoil(passed.call)
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Sees every operation, and which outputs of layers it uses."""

    # flex attention and the like: one use, which is not a ReLU
    supports_higher_order_operators = True

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.counts: Counter[torch.nn.Module] = Counter()
        #: layers whose parameters are used while they do not run
        self.outside: set[torch.nn.Module] = set()
        self._passed: dict[int, _Passed] = {}
        self._running: list[torch.nn.Module] = []
        self._owners: dict[int, list[torch.nn.Module]] = {}
        for module in modules:
            for tensor in _own_tensors(module):
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
            call.follower = _RELU
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


def _watched(
    model: torch.nn.Module, example: tuple, kwargs: dict[str, Any] | None
) -> tuple[_Watch, list[torch.Tensor]]:
    """A run with what was seen, and its outputs."""
    watched = [m for m in model.modules() if _is_plain(m) or _is_unsupported(m) or isinstance(m, _BatchNorm)]
    watch = _Watch(watched)
    handles = []
    try:
        for module in watched:
            handles.append(module.register_forward_pre_hook(watch.enter, prepend=True))
            handles.append(module.register_forward_hook(watch.leave, prepend=True))
        with undisturbed(model):
            args, keywords = _copied(example, kwargs)
            with _Reads(watch), watch:
                output = model(*args, **keywords)
            outputs = _tensors(output)
            watch.escape(outputs)
            for module in model.modules():
                watch.escape(_tensors(vars(module), objects=False))
            # the model may return its own parameters
            return watch, [tensor.clone() for tensor in outputs]
    finally:
        for handle in handles:
            handle.remove()


def _copied(example: tuple, kwargs: dict[str, Any] | None) -> Any:
    """Arguments that the model may change in place."""
    if not isinstance(example, (tuple, list)):
        raise TypeError(f"example must be a tuple of the model's positional arguments; got {type(example).__name__}")
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (tuple(example), dict(kwargs or {})))


def _tensors(value: Any, objects: bool = True) -> list[torch.Tensor]:
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


# --- modules --------------------------------------------------------------------------------------------------------


def _names(model: torch.nn.Module) -> dict[torch.nn.Module, list[str]]:
    """All names of each module; a model with uninitialised ones is refused, since a run would initialise them."""
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
        if any(is_lazy(tensor) for tensor in _own_tensors(module)):
            raise ValueError(f"{name!r} has uninitialised parameters: run the model once on a batch before")
    return names


def _fits(names: list[str], patterns: Sequence[str]) -> bool:
    return any(matches(name, patterns) for name in names)


def _own_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether it computes what a Linear, Conv1d or Conv2d does."""
    return any(
        isinstance(module, kind)
        and all(
            getattr(type(module), method, None) is getattr(kind, method, None) and method not in vars(module)
            for method in ("forward", "_conv_forward")
        )
        for kind in _KINDS
    )


def _is_quantised(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn.") and ("Linear" in kind.__name__ or "Conv" in kind.__name__)


def _is_unsupported(module: torch.nn.Module) -> bool:
    """Whether it is a layer with weights that one might expect to be pruned."""
    return isinstance(module, (_ConvTransposeNd, torch.nn.Conv3d)) or _is_quantised(module)


def _trouble(module: torch.nn.Module) -> str:
    """Why a layer cannot be pruned, and what to do; empty if it can."""
    if isinstance(module, _ConvTransposeNd):
        return "is a transposed convolution, which cannot be pruned: replace it"
    if isinstance(module, torch.nn.Conv3d):
        return "is a convolution in three dimensions, which cannot be pruned: replace it"
    if _is_quantised(module):
        return "is quantised: prune the model before it is quantised"
    trouble = _weight_trouble(module)
    if not trouble and isinstance(module, _ConvNd) and module.padding_mode != "zeros":
        trouble = f"pads with {module.padding_mode!r}: set its padding_mode to 'zeros' and train on"
    return trouble


def _weight_trouble(module: Any) -> str:
    """Why a layer's weights cannot be replaced."""
    if parametrize.is_parametrized(module):
        return (
            "is parametrised: make its weights plain with torch.nn.utils.parametrize.remove_parametrizations(module, "
            f"{next(iter(module.parametrizations))!r})"
        )
    for name in ("weight", "bias"):
        if name not in module._parameters:
            if f"{name}_mask" in module._buffers:
                remedy = f"torch.nn.utils.prune.remove(module, {name!r})"
            elif f"{name}_g" in module._parameters:
                remedy = "torch.nn.utils.remove_weight_norm(module)"
            else:
                remedy = "what undoes it (for spectral norm, torch.nn.utils.remove_spectral_norm)"
            return f"computes its {name} before every call: make it a plain parameter with {remedy}"
        tensor = module._parameters[name]
        if tensor is None:
            continue
        if is_lazy(tensor):
            return "has uninitialised parameters: run the model once on a batch before"
        if type(tensor) is not torch.nn.Parameter:
            return f"has a {name} of type {type(tensor).__name__}: make it a plain torch.nn.Parameter"
        if tensor.dtype not in _TOLERANCES:
            return f"has a {name} of dtype {tensor.dtype}: convert it to float16, bfloat16, float32 or float64"
    return ""


def _sharing(names: dict[torch.nn.Module, list[str]]) -> dict[Any, list[tuple[torch.nn.Module, str]]]:
    """By place in memory, the modules with a parameter or buffer there, and their names for it."""
    places: dict[Any, list[tuple[torch.nn.Module, str]]] = {}
    for module, known in names.items():
        for what in (*module._parameters, *module._buffers):
            tensor = getattr(module, what)
            if tensor is not None:
                places.setdefault(_place(tensor), []).append((module, f"{known[0]}.{what}".lstrip(".")))
    return places


def _place(tensor: torch.Tensor) -> Any:
    # equal addresses, and not the same Parameter only: two Parameters can be made of one tensor
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    return (tensor.device, address) if address else id(tensor)


def _tying(module: torch.nn.Module, sharing: dict[Any, list[tuple[torch.nn.Module, str]]], watch: _Watch) -> str:
    """With whom a layer shares its parameters, and what to do; empty if with nobody."""
    for what, parameter in module._parameters.items():
        if parameter is None:
            continue
        others = [name for other, name in sharing[_place(parameter)] if other is not module]
        if others:
            return f"shares its {what} with {', '.join(map(repr, others))} (weight tying): give it a copy of its own"
    if module in watch.outside:
        return "has parameters that are also used outside of its calls (weight tying): give it a copy of its own"
    return ""


def _array(tensor: torch.Tensor) -> np.ndarray:
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    # a contiguous copy, also of a tensor that is on the host and in this dtype
    return np.array(tensor.detach().to("cpu", dtype).numpy(), order="C")


# --- batch norms ----------------------------------------------------------------------------------------------------


def _foldable(names: dict[torch.nn.Module, list[str]], watch: _Watch) -> list[tuple[Any, Any]]:
    """Pairs of layer and batch norm, in order."""
    sharing = _sharing(names)
    pairs = []
    for call in watch.calls:
        layer, norm = call.module, call.follower
        if not isinstance(norm, _BatchNorm) or not _is_foldable(norm) or norm in watch.outside:
            continue
        if not _is_plain(layer) or _weight_trouble(layer) or _tying(layer, sharing, watch):
            continue
        # the batch norm's channels are dimension 1, and must be the layer's outputs
        channels = 2 + len(layer.kernel_size) if isinstance(layer, _ConvNd) else 2
        if watch.counts[layer] == watch.counts[norm] == 1 and call.ndim == channels:
            pairs.append((layer, norm))
    return pairs


def _is_foldable(norm: torch.nn.Module) -> bool:
    return (
        isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
        and type(norm).forward is _BatchNorm.forward
        and "forward" not in vars(norm)
        and not parametrize.is_parametrized(norm)
        and norm.running_mean is not None
        and norm.running_var is not None
    )


def _fold(layer: Any, norm: Any) -> None:
    """(z - mean) / sqrt(var + eps) * gamma + beta of z = W x + b is W' x + b'; in float64, rounded once."""
    weight = layer.weight
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight.copy_(weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    if layer.bias is None:
        layer.bias = torch.nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(bias)


def _put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Put a module where another is."""
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


def _compare(before: list[torch.Tensor], after: list[torch.Tensor], tolerance: float) -> None:
    """That outputs are the same up to rounding; of integers and bools, the fraction that differs counts."""
    if [t.shape for t in before] != [t.shape for t in after]:
        raise RuntimeError("its outputs have other shapes")
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old.numel() == 0:
            continue
        if not (old.is_floating_point() or old.is_complex()):
            worst = max(worst, float((old != new).double().mean()))
            continue
        old, new = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (old, new))
        same = (old == new) | (old.isnan() & new.isnan())
        difference = torch.where(same, 0, (old - new).abs()).nan_to_num(nan=torch.inf)
        size = torch.where(old.isfinite(), old.abs(), 0).max()
        worst = max(worst, float(difference.max() / torch.where(size > 0, size, 1)))
    if not worst <= tolerance:
        raise RuntimeError(f"its outputs change by {worst:.1e} of the largest entry, more than {tolerance:.0e}")


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32, whose rounding alone is larger than the tolerance in float32."""
    backends: Any = torch.backends
    switches = (backends.cudnn.conv, backends.cuda.matmul)
    found = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, found, strict=True):
            switch.fp32_precision = value

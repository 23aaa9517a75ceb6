"""A physically smaller model with the same outputs: channels that nothing reads, or that are constant, are taken out.

A channel is an output of a Linear layer or of a convolution. It can go if everything that its values reach, through
functions that keep channels apart, is a Linear layer or a convolution, and either none of these reads it (all weights
on it are zero) or it is constant (its own weights are all zero). What a constant is worth is added to the biases of
the layers that read it. Each channel that goes may leave another without a reader, or without weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nettrim.problem import warn
from nettrim.torch.fold import tolerance_of, worst_difference
from nettrim.torch.modules import is_plain, weight_trouble
from nettrim.torch.routes import RESHAPES, Reader, Routes, traced
from nettrim.torch.watch import copied, tensors_in, undisturbed

__all__ = ["Shrunk", "shrink"]


@dataclass(frozen=True)
class Shrunk:
    """A smaller model, and what became of its layers.

    Attributes
    ----------
    model : nn.Module
    layers : list of (str, (int, int), (int, int))
        Of each Linear layer and convolution: its name, and its inputs and outputs before and after.
    parameters : (int, int)
        Of the model, before and after.
    """

    model: nn.Module
    layers: list[tuple[str, tuple[int, int], tuple[int, int]]]
    parameters: tuple[int, int]

    def __repr__(self) -> str:
        before, after = self.parameters
        return f"Shrunk({type(self.model).__name__}, {before} to {after} parameters)"

    def table(self) -> str:
        """The layers as text."""
        width = max([len(name) for name, *_ in self.layers] + [5])
        lines = [f"{'layer':{width}}  {'inputs':>14}  {'outputs':>14}"]
        for name, old, new in self.layers:
            cells = [f"{a} -> {b}" if a != b else str(a) for a, b in zip(old, new, strict=True)]
            lines.append(f"{name:{width}}  {cells[0]:>14}  {cells[1]:>14}")
        before, after = self.parameters
        lines.append(f"{before} -> {after} parameters ({after / max(before, 1):.1%})")
        return "\n".join(lines)


@torch.no_grad()
def shrink(model: nn.Module, example: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Shrunk:
    """Take out of a model what its zeros make superfluous; the outputs stay as they were, up to rounding.

    Zeros that leave no channel without use, which is what l1 makes, save nothing here: prune with ``penalty="inputs"``
    or ``"outputs"``, or at densities so low that channels go by themselves. Channels stay where they meet in a sum, as
    between the blocks of a residual network, where the model puts them out, or where anything but the functions that
    are known to keep channels apart sees them. So do those of grouped convolutions and of layers that run twice.
    Inputs of a layer with an n:m pattern move together when others go: the pattern is then lost.

    Parameters
    ----------
    model : nn.Module
        It must be traceable by `torch.fx`: no branches on values. Left as it was.
    example : tuple
        Positional arguments of a forward pass.
    kwargs : dict, optional
        Its keyword arguments.

    Returns
    -------
    Shrunk
        With a copy of the model whose modules have the same names and fewer channels.

    Raises
    ------
    TypeError
        `model` is not a module, or `example` not a tuple.
    ValueError
        The model does not run on the example, or cannot be traced; the message says why.
    RuntimeError
        The smaller model's outputs on the example are not those of the model.

    Warns
    -----
    UserWarning
        There are layers that do not run in evaluation mode, or 2:4 patterns were lost.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(example, tuple):
        raise TypeError(f"example must be a tuple of arguments; got {type(example).__name__}")
    for name, module in model.named_modules():
        if is_plain(module) and (trouble := weight_trouble(module)):
            raise ValueError(f"layer {name!r} {trouble}")
    old = _outputs(model, example, kwargs)
    if not old:
        raise ValueError("the model's outputs hold no tensors, so that nothing could be checked")
    small = copy.deepcopy(model)
    modes = {name: module.training for name, module in small.named_modules()}
    small.eval()
    graph, values = traced(small, example, {} if kwargs is None else kwargs)
    before = {name: _sizes(m) for name, m in small.named_modules() if is_plain(m)}
    patterns = [name for name in before if _is_2_of_4(small.get_submodule(name)) == 2]
    called = {id(small.get_submodule(n.target)) for n in graph.nodes if n.op == "call_module"}
    idle = [name for name in before if id(small.get_submodule(name)) not in called]
    if idle:
        warn(f"layers {', '.join(idle)} do not run in evaluation mode: if others do, they may not fit them afterwards")
    _Removal(small, graph, values).run()
    for name, mode in modes.items():
        small.get_submodule(name).training = mode
    lost = [name for name in patterns if not _is_2_of_4(small.get_submodule(name))]
    if lost:
        warn(f"layers {', '.join(lost)} had 2:4 patterns, which the removal of inputs broke")
    worst = worst_difference(old, _outputs(small, example, kwargs))
    if not worst <= tolerance_of([*model.parameters(), *old]):
        raise RuntimeError(f"the smaller model's outputs differ by {worst:.1e} of the largest entry")
    layers = [(name, sizes, _sizes(small.get_submodule(name))) for name, sizes in before.items()]
    count: Callable[[nn.Module], int] = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    return Shrunk(small, layers, (count(model), count(small)))


def _sizes(module: Any) -> tuple[int, int]:
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    return module.in_features, module.out_features


def _outputs(model: nn.Module, example: tuple[Any, ...], kwargs: dict[str, Any] | None) -> list[torch.Tensor]:
    with undisturbed(model):
        arguments, named = copied(example, kwargs)
        try:
            return tensors_in(model(*arguments, **named))
        except Exception as error:
            raise ValueError(f"the model does not run on the example: {error}") from error


def _is_2_of_4(layer: Any) -> int:
    """0 if a layer uses more than two of some four inputs; 2 if about so many of all, which is no accident; else 1."""
    weight = layer.weight
    if weight.ndim != 2 or weight.shape[1] % 4 or not weight.numel():
        return 0
    used = (weight != 0).reshape(-1, 4).sum(1)
    return 0 if int(used.max()) > 2 else 1 + int(float(used.double().mean()) > 1.6)


class _Removal(Routes):
    """The removal of channels, a layer at a time until nothing more can go."""

    def run(self) -> None:
        """Until nothing more can go."""
        routes = [(node, *found) for node in self.once if (found := self.route(node)) is not None]
        while any([self._reduce(node, steps, readers) for node, steps, readers in routes]):
            pass

    def _reduce(self, node: Any, steps: list[Any], readers: list[Reader]) -> bool:
        """Take the channels of a layer out that can go; whether there were any."""
        layer = self.once[node]
        weight = layer.weight
        channels = weight.shape[0]
        silent = (weight == 0).reshape(channels, -1).all(1)
        unread = torch.ones(channels, dtype=torch.bool, device=weight.device)
        for reader in readers:
            columns = self.once[reader.node].weight.movedim(1, 0)
            unread &= (columns == 0).reshape(channels, -1).all(1)
        constant = silent & ~unread
        shifts: dict[str, torch.Tensor] = {}
        if constant.any():
            constant, shifts = self._constants(node, steps, readers, constant)
        gone = unread | constant
        if gone.all():
            # a layer without channels is none
            gone[int(torch.nonzero(gone)[0])] = False
            constant, shifts = constant & gone, {}
            if (constant & ~unread).any():
                constant, shifts = self._constants(node, steps, readers, constant)
                gone = (unread & gone) | constant
        if not gone.any():
            return False
        for name, shift in shifts.items():
            _add_bias(self.model.get_submodule(name), shift)
        kept = torch.nonzero(~gone).squeeze(1)
        _select(layer, kept, 0)
        for step in steps:
            module = self.model.get_submodule(step.target) if step.op == "call_module" else None
            if isinstance(module, _BatchNorm):
                _select(module, _blocks(kept, module.num_features // channels), 0)
        for reader in readers:
            _select(self.once[reader.node], _blocks(kept, reader.block), 1)
        self._resize(node, steps, kept.numel(), channels)
        return True

    def _resize(self, node: Any, steps: list[Any], new: int, old: int) -> None:
        """Shapes after the removal, as far as later rounds use them."""
        for n in (node, *steps):
            shape = list(self.shapes[n])
            at = len(shape) - 1 if not isinstance(self.once[node], _ConvNd) else 1
            shape[at] = shape[at] // old * new
            self.shapes[n] = torch.Size(shape)

    def _constants(
        self, node: Any, steps: list[Any], readers: list[Reader], constant: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The channels whose constants the readers' biases can hold, and what they add to these."""
        layer = self.once[node]
        shape = [1, *self.shapes[node][1:]]
        at = 1 if isinstance(layer, _ConvNd) else len(shape) - 1
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        full = bias.reshape([-1 if k == at else 1 for k in range(len(shape))]).expand(shape).contiguous()
        values: dict[Any, Any] = {node: full}
        for step in steps:
            source = next(n for n in step.all_input_nodes if n in self.shapes)
            if step.op == "call_method" and step.target in RESHAPES:
                # its sizes are those of the batch; it flattens, or does nothing
                values[step] = values[source] if step in self.same else values[source].flatten(1)
                continue
            arguments = fx.node.map_arg((step.args, step.kwargs), lambda n: self._evaluated(n, values))
            values[step] = _call(self.model, step, arguments)
        # near the border an average over padding is another one
        padded = any(self.pads(step) for step in steps)
        ready = constant.clone()
        parts: dict[str, torch.Tensor] = {}
        for reader in readers:
            module = self.once[reader.node]
            arriving = values[next(n for n in reader.node.all_input_nodes if n in values)]
            axis = 1 if isinstance(module, _ConvNd) else arriving.ndim - 1
            rows = arriving.movedim(axis, 0).reshape(arriving.shape[axis], -1)
            # a value for each input; where it is not the same everywhere it cannot go into a bias
            same = (rows == rows[:, :1]).all(1)
            if padded or (isinstance(module, _ConvNd) and any(_padding(module))):
                # padding is zero, and near it the constant would be missing
                same &= rows[:, 0] == 0
            ready &= same.reshape(-1, reader.block).all(1)
            columns = module.weight.movedim(1, 0).reshape(rows.shape[0], module.weight.shape[0], -1).sum(2)
            parts[reader.name] = rows[:, :1].double() * columns.double()
        shifts = {
            reader.name: parts[reader.name][_blocks(torch.nonzero(ready).squeeze(1), reader.block)].sum(0)
            for reader in readers
        }
        return ready, shifts if ready.any() else {}

    def _evaluated(self, node: Any, values: dict[Any, Any]) -> Any:
        """A node's value for one sample of constants: those of the route, and sizes read from them."""
        if node not in values:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._evaluated(n, values))
            values[node] = (
                getattr(args[0], node.target)(*args[1:], **kwargs)
                if node.op == "call_method"
                else (node.target(*args, **kwargs))
            )
        return values[node]


def _padding(module: Any) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        return (0,) if module.padding == "valid" else tuple(k - 1 for k in module.kernel_size)
    return tuple(module.padding)


def _call(model: nn.Module, node: Any, arguments: Any) -> torch.Tensor:
    """What a node makes of one sample of constants."""
    args, kwargs = arguments
    if node.op == "call_module":
        return model.get_submodule(node.target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _blocks(channels: torch.Tensor, block: int) -> torch.Tensor:
    """Indices of the inputs that channels are."""
    return (channels[:, None] * block + torch.arange(block, device=channels.device)).reshape(-1)


def _add_bias(module: Any, shift: torch.Tensor) -> None:
    if module.bias is None:
        weight = module.weight
        module.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        module.bias.copy_((module.bias.double() + shift).to(module.bias.dtype))


def _select(module: Any, index: torch.Tensor, axis: int) -> None:
    """Keep some of a module's outputs (axis 0) or inputs (axis 1)."""
    names = ["weight"] if axis == 1 else ["weight", "bias", "running_mean", "running_var"]
    for name in names:
        old = getattr(module, name, None)
        if old is None:
            continue
        new = old.detach().index_select(axis, index).clone()
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    size = index.numel()
    if isinstance(module, _BatchNorm):
        module.num_features = size
    elif isinstance(module, _ConvNd):
        setattr(module, "in_channels" if axis else "out_channels", size)
    else:
        setattr(module, "in_features" if axis else "out_features", size)

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
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nettrim.torch.fold import tolerance_of, worst_difference
from nettrim.torch.modules import is_plain, weight_trouble
from nettrim.torch.watch import copied, tensors_in, undisturbed

__all__ = ["Shrunk", "shrink"]

#: modules and functions that treat each channel by itself
_APART: tuple[type, ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.BatchNorm1d, nn.BatchNorm2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_FUNCTIONS: set[Any] = {
    *(F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus),
    *(torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.softsign),
    *(F.dropout, F.dropout1d, F.dropout2d, torch.flatten),
}
_POOLS: set[Any] = {
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, torch.max_pool1d, torch.max_pool2d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d),
}
_METHODS = {"relu", "relu_", "tanh", "sigmoid", "flatten", "contiguous"}
#: methods that may flatten; whether they do is seen by the shapes
_RESHAPES = {"view", "reshape"}


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


@dataclass
class _Reader:
    """A layer that reads the channels of another: each channel is `block` neighbouring inputs of it."""

    name: str
    node: fx.Node
    block: int


@torch.no_grad()
def shrink(model: nn.Module, example: tuple, kwargs: dict[str, Any] | None = None) -> Shrunk:
    """Take out of a model what its zeros make superfluous; the outputs stay as they were, up to rounding.

    Zeros that leave no channel without use, which is what l1 makes, save nothing here: prune with ``penalty="inputs"``
    or ``"outputs"``, or at densities so low that channels go by themselves. Channels that meet in a sum, as in residual
    networks, stay; those within a block can go. So do grouped convolutions, and layers that run more than once.

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
        `example` is not a tuple.
    ValueError
        The model cannot be traced; the message says why.
    RuntimeError
        The smaller model's outputs on the example are not those of the model.
    """
    if not isinstance(example, tuple):
        raise TypeError(f"example must be a tuple of arguments; got {type(example).__name__}")
    small = copy.deepcopy(model)
    modes = {name: module.training for name, module in small.named_modules()}
    small.eval()
    keywords = {} if kwargs is None else kwargs
    try:
        graph = fx.symbolic_trace(small, concrete_args=None).graph
    except Exception as error:
        raise ValueError(f"the model cannot be traced by torch.fx: {error}") from error
    values = _values(small, graph, example, keywords)
    before = {name: _sizes(m) for name, m in small.named_modules() if is_plain(m)}
    plan = _Plan(small, graph, values)
    plan.run()
    for name, mode in modes.items():
        small.get_submodule(name).training = mode
    outputs = []
    for one in (model, small):
        with undisturbed(one):
            arguments, named = copied(example, kwargs)
            outputs.append(tensors_in(one(*arguments, **named)))
    old, new = outputs
    if not old:
        raise ValueError("the model's outputs hold no tensors, so that nothing could be checked")
    worst = worst_difference(old, new)
    if not worst <= tolerance_of([*model.parameters(), *old]):
        raise RuntimeError(f"the smaller model's outputs differ by {worst:.1e} of the largest entry")
    layers = [(name, sizes, _sizes(small.get_submodule(name))) for name, sizes in before.items()]
    count: Callable[[nn.Module], int] = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    return Shrunk(small, layers, (count(model), count(small)))


def _sizes(module: Any) -> tuple[int, int]:
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    return module.in_features, module.out_features


def _values(model: nn.Module, graph: fx.Graph, example: tuple, kwargs: dict[str, Any]) -> dict[fx.Node, torch.Size]:
    """Shapes of the tensors that the nodes of a graph put out."""
    shapes: dict[fx.Node, torch.Size] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                shapes[n] = result.shape
            return result

    names = [n.target for n in graph.nodes if n.op == "placeholder"]
    arguments = list(example) + [kwargs[name] for name in names[len(example) :] if name in kwargs]
    if len(arguments) < len(names):
        defaults = [n.args[0] for n in graph.nodes if n.op == "placeholder" and n.args]
        arguments += defaults[len(defaults) - (len(names) - len(arguments)) :]
    Record(fx.GraphModule(model, graph)).run(*arguments)
    return shapes


class _Plan:
    """The channels of a traced model, and their removal, a layer at a time until nothing more can go."""

    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size]):
        self.model, self.shapes = model, shapes
        calls: dict[Any, list[Any]] = {}
        node: Any
        for node in graph.nodes:
            if node.op == "call_module":
                # a module under two names is the same one
                calls.setdefault(id(model.get_submodule(node.target)), []).append(node)
        self.once: dict[Any, Any] = {
            nodes[0]: model.get_submodule(nodes[0].target) for nodes in calls.values() if len(nodes) == 1
        }
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self.tied = {key for key, count in owners.items() if count > 1}
        #: parameters and modules that the graph reads by itself, not by a call
        self.read = {node.target for node in graph.nodes if node.op == "get_attr"}

    def run(self) -> None:
        """Until nothing more can go."""
        routes = [(node, *found) for node in self.once if (found := self._route(node)) is not None]
        while any([self._reduce(node, steps, readers) for node, steps, readers in routes]):
            pass

    def _layer(self, node: Any) -> Any:
        """The layer that a node calls, if its channels can be changed."""
        module = self.once.get(node)
        if module is None or not is_plain(module) or (isinstance(module, _ConvNd) and module.groups != 1):
            return None
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            return None
        if weight_trouble(module) or any(id(p) in self.tied for p in module.parameters()):
            return None
        return None if any(name.startswith(f"{node.target}.") for name in self.read) else module

    def _route(self, node: Any) -> tuple[list[Any], list[_Reader]] | None:
        """What the outputs of a layer pass through, in order, and the layers that read them; None if not only these."""
        layer = self._layer(node)
        if layer is None or node not in self.shapes:
            return None
        axis = 1 if isinstance(layer, _ConvNd) else len(self.shapes[node]) - 1
        # channels must be apart in an axis of their own, with samples before them
        if isinstance(layer, _ConvNd) and len(self.shapes[node]) != 2 + len(layer.kernel_size):
            return None
        channels = self.shapes[node][axis]
        steps, readers, waiting = [], [], [(node, axis, 1)]
        while waiting:
            source, at, block = waiting.pop()
            for user in source.users:
                if user not in self.shapes:
                    # a size, which is another one afterwards
                    continue
                if [n for n in user.all_input_nodes if n in self.shapes] != [source]:
                    return None
                reader = self._layer(user)
                if reader is not None:
                    expected = 1 if isinstance(reader, _ConvNd) else len(self.shapes[source]) - 1
                    if at != expected or self.shapes[source][at] != channels * block:
                        return None
                    readers.append(_Reader(str(user.target), user, block))
                    continue
                found = self._step(user, source, at, block, channels)
                if found is None:
                    return None
                steps.append(user)
                waiting.append((user, *found))
        return (sorted(steps, key=self._order), readers) if readers else None

    def _order(self, node: fx.Node) -> int:
        return list(node.graph.nodes).index(node)

    def _step(self, user: Any, source: Any, at: int, block: int, channels: int) -> tuple[int, int] | None:
        """Axis and block of the channels after a function that keeps them apart; None after any other."""
        old, new = self.shapes[source], self.shapes[user]
        if user.op == "call_module":
            module = self.model.get_submodule(user.target)
            if type(module) not in _APART:
                return None
            if isinstance(module, _BatchNorm) and (user not in self.once or at != 1 or module.running_mean is None):
                return None
            spatial = type(module).__name__.endswith(("Pool1d", "Pool2d"))
        elif user.op == "call_function" and user.target in _FUNCTIONS | _POOLS:
            spatial = user.target in _POOLS
        elif user.op == "call_method" and user.target in _METHODS:
            spatial = False
        elif user.op == "call_method" and user.target in _RESHAPES:
            sizes = user.args[1:] if not isinstance(user.args[1], (tuple, list)) else user.args[1]
            if sizes[-1] != -1:
                # written for this number of channels
                return None
            spatial = False
        else:
            return None
        if old == new:
            return at, block
        if spatial:
            # pooled over what comes after the channels
            kept = at == 1 and len(old) == len(new) and old[:2] == new[:2]
            return (at, block) if kept else None
        flat = len(new) == 2 and at == 1 and new[0] == old[0] and new[1] == old[1:].numel() and block == 1
        return (1, new[1] // channels) if flat else None

    def _reduce(self, node: Any, steps: list[Any], readers: list[_Reader]) -> bool:
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
        self, node: Any, steps: list[Any], readers: list[_Reader], constant: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The channels whose constants the readers' biases can hold, and what they add to these."""
        layer = self.once[node]
        shape = [1, *self.shapes[node][1:]]
        at = 1 if isinstance(layer, _ConvNd) else len(shape) - 1
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        full = bias.reshape([-1 if k == at else 1 for k in range(len(shape))]).expand(shape).contiguous()
        values: dict[Any, torch.Tensor] = {node: full}
        for step in steps:
            # a size is not known here, and not needed
            arguments = fx.node.map_arg((step.args, step.kwargs), lambda n: values.get(n))
            values[step] = _call(self.model, step, arguments)
        ready = constant.clone()
        parts: dict[str, torch.Tensor] = {}
        for reader in readers:
            module = self.once[reader.node]
            arriving = values[next(n for n in reader.node.all_input_nodes if n in values)]
            axis = 1 if isinstance(module, _ConvNd) else arriving.ndim - 1
            rows = arriving.movedim(axis, 0).reshape(arriving.shape[axis], -1)
            # a value for each input; where it is not the same everywhere it cannot go into a bias
            same = (rows == rows[:, :1]).all(1)
            if isinstance(module, _ConvNd) and any(_padding(module)):
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


def _padding(module: Any) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        return (0,) if module.padding == "valid" else tuple(k - 1 for k in module.kernel_size)
    return tuple(module.padding)


def _call(model: nn.Module, node: Any, arguments: Any) -> torch.Tensor:
    """What a node makes of one sample of constants."""
    args, kwargs = arguments
    if node.op == "call_module":
        return model.get_submodule(node.target)(*args, **kwargs)
    if node.op == "call_method" and node.target in _RESHAPES:
        # the sizes in the call are those of the whole batch
        return args[0].flatten(1)
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

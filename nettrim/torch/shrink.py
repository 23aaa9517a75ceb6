"""A physically smaller model with the same outputs: channels that nothing reads, or that are constant, are taken out.

A channel is an output of a Linear layer or of a convolution. It can go if everything that its values reach, through
functions that keep channels apart, is a Linear layer or a convolution, and either none of these reads it (all weights
on it are zero) or it is constant (its own weights are all zero). What a constant is worth is added to the biases of
the layers that read it. Each channel that goes may leave another without a reader, or without weights.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nettrim.problem import warn
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
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d)
#: whose windows count padding as zeros
_AVERAGES: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, F.avg_pool1d, F.avg_pool2d)
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
    graph, values = _traced(small, example, {} if kwargs is None else kwargs)
    before = {name: _sizes(m) for name, m in small.named_modules() if is_plain(m)}
    patterns = [name for name in before if _is_2_of_4(small.get_submodule(name)) == 2]
    called = {id(small.get_submodule(n.target)) for n in graph.nodes if n.op == "call_module"}
    idle = [name for name in before if id(small.get_submodule(name)) not in called]
    if idle:
        warn(f"layers {', '.join(idle)} do not run in evaluation mode: if others do, they may not fit them afterwards")
    plan = _Plan(small, graph, values)
    plan.run()
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


def _outputs(model: nn.Module, example: tuple, kwargs: dict[str, Any] | None) -> list[torch.Tensor]:
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


def _traced(model: nn.Module, example: tuple, kwargs: dict[str, Any]) -> tuple[fx.Graph, dict[fx.Node, torch.Size]]:
    """Graph of a model in evaluation mode, and the shapes of the tensors that its nodes put out.

    Arguments that are not given have their defaults, which the graph is for.
    """
    try:
        bound = inspect.signature(model.forward).bind(*example, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        defaults = {name: value for name, value in bound.arguments.items() if name not in given}
        graph = fx.symbolic_trace(model, concrete_args=defaults or None).graph
        return graph, _values(model, graph, list(bound.arguments.values()))
    except Exception as error:
        raise ValueError(f"the model cannot be traced by torch.fx: {error}") from error


def _values(model: nn.Module, graph: fx.Graph, arguments: list[Any]) -> dict[fx.Node, torch.Size]:
    """Shapes of the tensors that the nodes of a graph put out."""
    shapes: dict[fx.Node, torch.Size] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                shapes[n] = result.shape
            return result

    arguments, _ = copied(tuple(arguments), None)
    with torch.no_grad():
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
        #: reshapes that change nothing
        self.same = {n for n in shapes if n.op == "call_method" and n.target in _RESHAPES and self._unchanged(n)}
        #: parameters and modules that the graph reads by itself, not by a call
        self.read = {node.target for node in graph.nodes if node.op == "get_attr"}

    def _unchanged(self, node: Any) -> bool:
        return self.shapes.get(node.args[0]) == self.shapes[node]

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
        if layer is None or node not in self.shapes or len(self.shapes[node]) < 2:
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
                if self._reads_other_sizes(user, len(self.shapes[source]), at):
                    continue
                if user not in self.shapes or (len(source.users) > 1 and self._in_place(user)):
                    return None
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

    def _reads_other_sizes(self, user: Any, ndim: int, at: int) -> bool:
        """Whether a node reads sizes of a tensor, but not that of its channels, which will change."""

        def other(index: Any) -> bool:
            try:
                chosen = range(ndim)[index]
            except (TypeError, IndexError):
                return False
            return at not in (chosen if isinstance(chosen, range) else (chosen,))

        whole = False
        if user.op == "call_method" and user.target == "size":
            index = user.args[1:] or tuple(user.kwargs.values())
            if index:
                return other(index[0])
            whole = True
        elif user.op == "call_function" and user.target is getattr and user.args[1] == "shape":
            whole = True
        return whole and all(
            n.op == "call_function" and n.target is operator.getitem and other(n.args[1]) for n in user.users
        )

    def _in_place(self, user: Any) -> bool:
        """Whether a function changes its argument, which others then see changed."""
        if user.op == "call_module":
            return bool(getattr(self.model.get_submodule(user.target), "inplace", False))
        if user.op == "call_method":
            return str(user.target).endswith("_")
        name = getattr(user.target, "__name__", "")
        return bool(user.kwargs.get("inplace", False)) or any(a is True for a in user.args) or name.endswith("_")

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
            kind = type(module).__name__
            spatial = int(kind[-2]) if kind.endswith(("Pool1d", "Pool2d")) else 0
        elif user.op == "call_function" and user.target in _FUNCTIONS | _POOLS:
            spatial = 0
            if user.target in _POOLS:
                spatial = 1 if "1d" in getattr(user.target, "__name__", "") else len(old) - 2
            if user.target in _DROPOUTS and _argument(user, 2, "training", True):
                # random, also in evaluation mode
                return None
        elif user.op == "call_method" and user.target in _METHODS:
            spatial = 0
        elif user.op == "call_method" and user.target in _RESHAPES:
            sizes: Any = user.args[1:] or tuple(user.kwargs.values())
            if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
                sizes = sizes[0]
            if not sizes or sizes[-1] != -1:
                # written for this number of channels
                return None
            spatial = 0
        else:
            return None
        if spatial:
            # pooled over what comes after the channels
            kept = at == 1 and len(old) == len(new) == 2 + spatial and old[:2] == new[:2]
            return (at, block) if kept else None
        if old == new:
            return at, block
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
        values: dict[Any, Any] = {node: full}
        for step in steps:
            source = next(n for n in step.all_input_nodes if n in self.shapes)
            if step.op == "call_method" and step.target in _RESHAPES:
                # its sizes are those of the batch; it flattens, or does nothing
                values[step] = values[source] if step in self.same else values[source].flatten(1)
                continue
            arguments = fx.node.map_arg((step.args, step.kwargs), lambda n: self._evaluated(n, values))
            values[step] = _call(self.model, step, arguments)
        # near the border an average over padding is another one
        padded = any(self._pads(step) for step in steps)
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

    def _pads(self, step: Any) -> bool:
        """Whether a step averages over padding."""
        if step.op == "call_module":
            module = self.model.get_submodule(step.target)
            return isinstance(module, _AVERAGES[:2]) and bool(_some(module.padding) or module.ceil_mode)
        padding, ceil = _argument(step, 3, "padding", 0), _argument(step, 4, "ceil_mode", False)
        return step.op == "call_function" and step.target in _AVERAGES[2:] and bool(_some(padding) or ceil)


def _some(value: Any) -> bool:
    """Whether a number, or one of several, is not zero."""
    return any(value) if isinstance(value, (tuple, list)) else bool(value)


def _argument(node: Any, place: int, name: str, default: Any) -> Any:
    """An argument of a call in a graph."""
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


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

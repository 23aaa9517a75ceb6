"""What the channels of a traced model pass through, and which layers read them."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nettrim.torch.modules import is_plain, weight_trouble
from nettrim.torch.watch import copied

__all__ = ["RESHAPES", "Reader", "Routes", "traced"]

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
#: and the number of axes after the channels that they pool over
_POOLS: dict[Any, int] = {
    **dict.fromkeys((F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d, torch.max_pool1d), 1),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d), 2),
}
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d)
#: whose windows count padding as zeros
_AVERAGES: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, F.avg_pool1d, F.avg_pool2d)
_METHODS = {"relu", "relu_", "tanh", "sigmoid", "flatten", "contiguous"}
#: methods that may flatten; whether they do is seen by the shapes
RESHAPES = {"view", "reshape"}


@dataclass
class Reader:
    """A layer that reads the channels of another: each channel is `block` neighbouring inputs of it."""

    name: str
    node: fx.Node
    block: int


def traced(
    model: nn.Module, example: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[fx.Graph, dict[fx.Node, torch.Size]]:
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


class Routes:
    """The channels of a traced model: where they go, and who reads them."""

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
        self.same = {n for n in shapes if n.op == "call_method" and n.target in RESHAPES and self._unchanged(n)}
        #: parameters and modules that the graph reads by itself, not by a call
        self.read = {node.target for node in graph.nodes if node.op == "get_attr"}

    def _unchanged(self, node: Any) -> bool:
        return self.shapes.get(node.args[0]) == self.shapes[node]

    def layer_of(self, node: Any) -> Any:
        """The layer that a node calls, if its channels can be changed."""
        module = self.once.get(node)
        if module is None or not is_plain(module) or (isinstance(module, _ConvNd) and module.groups != 1):
            return None
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            return None
        if weight_trouble(module) or any(id(p) in self.tied for p in module.parameters()):
            return None
        return None if any(name.startswith(f"{node.target}.") for name in self.read) else module

    def route(self, node: Any) -> tuple[list[Any], list[Reader]] | None:
        """What the outputs of a layer pass through, in order, and the layers that read them; None if not only these."""
        layer = self.layer_of(node)
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
                reader = self.layer_of(user)
                if reader is not None:
                    expected = 1 if isinstance(reader, _ConvNd) else len(self.shapes[source]) - 1
                    if at != expected or self.shapes[source][at] != channels * block:
                        return None
                    readers.append(Reader(str(user.target), user, block))
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
        elif user.op == "call_function" and (user.target in _FUNCTIONS or user.target in _POOLS):
            spatial = _POOLS.get(user.target, 0)
            if user.target in _DROPOUTS and _argument(user, 2, "training", True):
                # random, also in evaluation mode
                return None
        elif user.op == "call_method" and user.target in _METHODS:
            spatial = 0
        elif user.op == "call_method" and user.target in RESHAPES:
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

    def pads(self, step: Any) -> bool:
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

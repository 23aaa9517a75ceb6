"""Layers of PyTorch models: which there are, what follows them, their arrays, and batch norms folded into them."""

from __future__ import annotations

import contextlib
import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from nettrim import flow  # noqa: E402
from nettrim.torch.fold import fold_batch_norm  # noqa: E402
from nettrim.torch.graph import Target, find_targets, layer_of  # noqa: E402
from nettrim.torch.watch import undisturbed  # noqa: E402


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Body(nn.Module):
    """A layer `fc` (8 to 8), and a function of its output and of the module."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.fc = nn.Linear(8, 8) if layer is None else layer
        self.other = nn.Linear(8, 8)
        self.function = function

    def forward(self, x):
        return self.function(self, self.fc(x))


def relus(model, *example, **options):
    return {t.name: t.relu for t in find_targets(model, example, **options)}


def follows(function, *example, layer=None):
    """Whether what `function` does to the outputs of a layer counts as a ReLU."""
    example = example or (torch.randn(3, 5, 8),)
    return relus(Body(function, layer), *example, targets=["fc"])["fc"]


def state(model):
    """Everything of a model, and around it, that must stay as it is."""
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "grad": [p.requires_grad for p in model.parameters()],
        "identity": [id(t) for t in (*model.parameters(), *model.buffers())],
        "values": [t.detach().clone().numpy().tobytes() for t in (*model.parameters(), *model.buffers())],
        "random": (torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()),  # noqa: NPY002
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "precision": (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision),
    }


# --- what follows a layer -------------------------------------------------------------------------------------------


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu()


def twice_by_views(m, y):
    flat = y.view(-1)
    flat.relu_()
    return y + 1


RELUS = {
    "F.relu": lambda m, y: F.relu(y),
    "F.relu in place": lambda m, y: F.relu(y, inplace=True),
    "torch.relu": lambda m, y: torch.relu(y),
    "torch.relu_": lambda m, y: torch.relu_(y),
    "method": lambda m, y: y.relu(),
    "method in place": lambda m, y: y.relu_(),
    "method in place, then used twice": lambda m, y: (y.relu_(), m.other(y) + y)[1],
    "module": lambda m, y: nn.ReLU()(y),
    "module in place": lambda m, y: nn.ReLU(inplace=True)(y),
    "ReLU used twice": lambda m, y: (lambda z: m.other(z) + z)(F.relu(y)),
    "clamp": lambda m, y: y.clamp(min=0),
    "clamp in place": lambda m, y: y.clamp_(0.0),
    "clamp_min": lambda m, y: torch.clamp_min(y, 0),
    "clamp_min in place": lambda m, y: y.clamp_min_(0),
    "threshold": lambda m, y: nn.Threshold(0, 0)(y),
    "identity, dropout": lambda m, y: F.relu(F.dropout(nn.Identity()(y), training=m.training)),
    "flatten": lambda m, y: F.relu(y.flatten(1)),
    "transpose, copied": lambda m, y: y.transpose(1, 2).reshape(3, -1).relu(),
    "view in place": lambda m, y: y.view(-1).relu_(),
    "inside an autograd.Function": lambda m, y: Straight.apply(y),
    "shapes looked at": lambda m, y: y.relu().view(y.shape[0], y.size(1), -1) if y.dtype.is_floating_point else y,
    "control flow": lambda m, y: F.relu(y) if m.other.weight.shape[0] > 3 and y.ndim > 1 else y,
}

OTHERS = {
    "nothing": lambda m, y: y,
    "unused": lambda m, y: torch.ones(2),
    "gelu": lambda m, y: F.gelu(y),
    "silu": lambda m, y: F.silu(y),
    "relu6": lambda m, y: F.relu6(y),
    "leaky": lambda m, y: F.leaky_relu(y),
    "elu": lambda m, y: F.elu(y),
    "clamp to an interval": lambda m, y: y.clamp(0, 6),
    "clamp above": lambda m, y: y.clamp(max=0),
    "clamp elsewhere": lambda m, y: y.clamp(min=0.5),
    "threshold elsewhere": lambda m, y: F.threshold(y, 0.1, 0),
    "threshold to another value": lambda m, y: F.threshold(y, 0, 1),
    "softmax": lambda m, y: y.softmax(-1),
    "sum, then ReLU": lambda m, y: F.relu(y + 1),
    "sum in place, then ReLU": lambda m, y: y.add_(1).relu_(),
    "two ReLUs": lambda m, y: F.relu(y) + F.relu(y),
    "skip connection": lambda m, y: F.relu(y) + y,
    "used before": lambda m, y: m.other(y) + F.relu(y),
    "used after": lambda m, y: F.relu(y) + m.other(y),
    "returned as well": lambda m, y: (F.relu(y), y),
    "returned in a dictionary": lambda m, y: {"a": [F.relu(y)], "b": {"c": y}},
    "returned in an object": lambda m, y: SimpleNamespace(a=F.relu(y), b=y),
    "returned detached": lambda m, y: (F.relu(y), y.detach()),
    "kept in an attribute": lambda m, y: (setattr(m, "kept", [y]), F.relu(y))[1],
    "part of it": lambda m, y: F.relu(y[..., :4]),
    "part in place": lambda m, y: (y[..., :4].relu_(), y)[1],
    "repeated": lambda m, y: F.relu(y[None].expand(2, 3, 5, 8)),
    "view in place, and used": twice_by_views,
    "two views": lambda m, y: F.relu(y.view(-1)).sum() + y.view(-1).sum(),
    "read as numpy": lambda m, y: F.relu(y) + float(y.numpy().max()),
    "read as a list": lambda m, y: F.relu(y) + y.tolist()[0][0][0],
    "read as data": lambda m, y: F.relu(y) + y.data.sum(),
    "one entry": lambda m, y: F.relu(y) if y[0, 0, 0] > -1e9 else y,
    "as the second argument": lambda m, y: torch.where(y > 0, y, 0),
    "overwritten": lambda m, y: torch.clamp(torch.ones_like(y), 0, out=y),
    "dropout that is always on": lambda m, y: F.relu(F.dropout(y, training=True)),
}


@pytest.mark.parametrize("function", RELUS.values(), ids=RELUS)
def test_relus_are_found(function):
    assert follows(function) is True


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_everything_else_is_linear(function):
    assert follows(function) is False


def test_sequential_in_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 3)
            self.first = nn.Sequential(
                nn.Linear(8, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 6), nn.Dropout(), nn.ReLU()
            )

        def forward(self, x):
            return self.last(self.first(x))

    found = find_targets(Backwards().train(), (torch.randn(4, 8),))
    assert [(t.name, t.relu, t.calls) for t in found] == [
        ("first.0", True, 1),
        ("first.3", True, 1),
        ("last", False, 1),
    ]


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inplace=True, bias=False):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def trained(model):
    """With running statistics and parameters of batch norms as if trained."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.running_mean is not None:
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return model


@pytest.mark.parametrize("inplace", [True, False])
def test_residual_block_before_and_after_folding(inplace):
    model, x = trained(nn.Sequential(Block(inplace), Block(inplace))), torch.randn(2, 4, 6, 6)
    names = ["0.conv1", "0.conv2", "1.conv1", "1.conv2"]
    assert relus(model, x) == dict.fromkeys(names, False)
    assert fold_batch_norm(model, (x,)) == [(n, n.replace("conv", "bn")) for n in names]
    assert relus(model, x) == {n: n.endswith("1") for n in names}


@pytest.mark.parametrize("activation, expected", [("relu", True), ("gelu", False)])
@pytest.mark.parametrize("fast", [True, False])
def test_transformer_encoder(activation, expected, fast):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True), 2)
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        found = relus(encoder.eval(), torch.randn(2, 5, 8))
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    # no out_proj, which is never called
    assert list(found.items()) == [
        (f"layers.{k}.{name}", expected and name == "linear1") for k in range(2) for name in ("linear1", "linear2")
    ]
    with pytest.raises(ValueError, match=r"'layers.0.self_attn.out_proj' never runs.*`ignore`"):
        find_targets(encoder, (torch.randn(2, 5, 8),), targets=["layers.0.*"])
    asked = find_targets(encoder, (torch.randn(2, 5, 8),), targets=["layers.0.*"], ignore=["*.out_proj"])
    assert [t.name for t in asked] == ["layers.0.linear1", "layers.0.linear2"]


@pytest.mark.parametrize("second, expected", [(F.relu, True), (torch.tanh, False)])
def test_shared_module(second, expected):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.b = self.a

        def forward(self, x):
            return second(self.b(F.relu(self.a(x))))

    model, example = Shared(), (torch.randn(3, 8),)
    (found,) = find_targets(model, example)
    assert (found.name, found.relu, found.calls, found.module is model.a) == ("a", expected, 2, True)
    # any of its names will do
    assert [t.name for t in find_targets(model, example, targets=["b"])] == ["a"]
    with pytest.raises(ValueError, match="leave no layer"):
        find_targets(model, example, ignore=["b"])


def test_several_inputs_keywords_and_data_dependent_control_flow():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.never = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x, batch, *, scale, steps=1):
            assert isinstance(x, torch.Tensor) and type(scale) is float
            y = self.a(x).relu() * scale + batch["z"][0]
            for _ in range(int(y.abs().max() > 0) * steps):
                y = F.relu(self.b(y))
            if y.min() < -1:
                return self.never(y)
            return {"out": self.c(y)}

    model = Odd()
    with pytest.raises(Exception, match=".*"):
        torch.fx.symbolic_trace(model)
    example, kwargs = (torch.randn(3, 8), {"z": [torch.randn(3, 8)]}), {"scale": 2.0, "steps": 3}
    found = find_targets(model, example, kwargs)
    assert [(t.name, t.relu, t.calls) for t in found] == [("a", True, 1), ("b", True, 3), ("c", False, 1)]
    with pytest.raises(ValueError, match="'never' never runs"):
        find_targets(model, example, kwargs, targets=["*", "never"])


def test_example_is_not_changed_in_place():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8), nn.BatchNorm1d(8)), torch.randn(4, 8)
    given = x.clone()
    find_targets(model, (x,))
    assert fold_batch_norm(model, (x,)) == [("1", "2")]
    assert torch.equal(x, given)


def test_outputs_are_seen_before_hooks_of_others():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(3, 8)
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    assert relus(model, x) == {"0": False}


def test_calls_that_fail_and_are_caught_do_not_count():
    class Tries(Body):
        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                self.fc(x[:, :3])
            return self.other(F.relu(self.fc(x)))

    found = find_targets(Tries(None), (torch.randn(3, 8),))
    assert [(t.name, t.relu, t.calls) for t in found] == [("fc", True, 1), ("other", False, 1)]


def test_convolutions_and_subclasses():
    class Special(nn.Conv2d):
        pass

    class Overridden(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Special(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), Overridden(5, 5))
    x = torch.randn(2, 3, 6, 6)
    model(x)
    assert relus(model, x) == {"0": True, "3": True}


# --- names ----------------------------------------------------------------------------------------------------------


def test_patterns():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.randn(3, 8)
    assert list(relus(model, x, targets=["re:[02]", "4"], ignore=["2"])) == ["0", "4"]
    with pytest.raises(ValueError, match=r"'fc\*', which fits no layer; there are: '0', '2', '4'"):
        find_targets(model, (x,), targets=["0", "fc*"])
    # a module that is no layer is fitted, and does not count
    with pytest.raises(ValueError, match="'1', which fits no layer"):
        find_targets(model, (x,), targets=["1"])
    with pytest.raises(ValueError, match="leave no layer"):
        find_targets(model, (x,), ignore=["*"])
    for options in ({"targets": "0"}, {"ignore": "0"}):
        with pytest.raises(TypeError, match="list of patterns"):
            find_targets(model, (x,), **options)
    with pytest.raises(TypeError, match="tuple"):
        find_targets(model, x)
    with pytest.raises(ValueError, match="model has no Linear, Conv1d or Conv2d"):
        find_targets(nn.ReLU(), (x,))


# --- layers that cannot be pruned -----------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.embedding, self.fc, self.head = nn.Embedding(8, 6), nn.Linear(6, 6), nn.Linear(6, 8, bias=False)
        self.tie = tie
        if tie == "parameter":
            self.head.weight = self.embedding.weight
        elif tie == "memory":
            self.head.weight = nn.Parameter(self.embedding.weight.detach())
        elif tie == "parent":
            self.own = self.head.weight

    def forward(self, x):
        y = F.embedding(x, self.head.weight) if self.tie == "function" else self.embedding(x)
        return self.head(self.fc(y))


@pytest.mark.parametrize(
    "tie, other",
    [
        ("parameter", "'embedding.weight'"),
        ("memory", "'embedding.weight'"),
        ("parent", "'own'"),
        ("function", "outside of its calls"),
    ],
)
def test_tied_weights(tie, other):
    model, x = Tied(tie), torch.arange(5)
    with pytest.raises(ValueError, match=rf"'head'.*{other}.*`ignore`"):
        find_targets(model, (x,))
    assert list(relus(model, x, ignore=["head"])) == ["fc"]
    assert list(relus(Tied("no"), x)) == ["fc", "head"]


def masked():
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


REFUSED = {
    "reflect": (lambda: nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"), "'reflect'"),
    "circular": (lambda: nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular"), "'circular'"),
    "transposed": (lambda: nn.ConvTranspose1d(8, 8, 3, padding=1), "transposed"),
    "parametrised": (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "remove_parametrizations"),
    "masked": (masked, r"prune.remove\(module, 'weight'\)"),
    "weight norm": (lambda: torch.nn.utils.weight_norm(nn.Linear(8, 8)), "remove_weight_norm"),
    "spectral norm": (lambda: torch.nn.utils.spectral_norm(nn.Linear(8, 8)), "remove_spectral_norm"),
    "quantised": (lambda: torch.ao.nn.quantized.dynamic.Linear(8, 8), "quantised"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refused_layers(make, message):
    model, x = nn.Sequential(nn.Linear(8, 8), make(), nn.ReLU()), torch.randn(8, 8)
    with pytest.raises(ValueError, match=f"layer '1'.*{message}.*or add it to `ignore`"):
        find_targets(model, (x,))
    assert relus(model, x, ignore=["1"]) == {"0": False}
    with pytest.raises(ValueError, match=message):
        layer_of(Target("1", model[1], False, 1))


def test_convolution_in_three_dimensions_is_refused():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(0), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'0' is a convolution in three dimensions"):
        find_targets(model, (torch.randn(1, 1, 3, 3, 3),))


def test_uninitialised_layers_are_refused_and_stay_so():
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(3))
    for function in (find_targets, fold_batch_norm):
        with pytest.raises(ValueError, match="'1' has uninitialised parameters: run the model once"):
            function(model, (torch.randn(3, 8),))
    assert isinstance(model[1], nn.LazyLinear) and model[1].has_uninitialized_params()


def test_other_dtypes_and_types_are_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.complex64))
    model[0].bias = None
    with pytest.raises(ValueError, match="'0' has a weight of dtype torch.complex64"):
        find_targets(nn.Sequential(model[0]), (torch.randn(3, 8, dtype=torch.complex64),))

    class Custom(nn.Parameter):
        pass

    model[0].weight = Custom(torch.randn(8, 8))
    with pytest.raises(ValueError, match="'0' has a weight of type Custom"):
        find_targets(model, (torch.randn(3, 8),))


# --- nothing is left behind -----------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Changes what it can in a forward pass."""

    def __init__(self, fails):
        super().__init__()
        self.fc, self.bn, self.dropout = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()
        self.register_buffer("steps", torch.zeros(2))
        self.register_buffer("rebound", torch.zeros(2))
        self.fails = fails

    def forward(self, x):
        self.steps += 1
        self.rebound = self.rebound + 1
        random.random()
        np.random.random()  # noqa: NPY002
        y = F.dropout(self.bn(self.fc(x)), 0.1, training=True)
        y = F.batch_norm(y, self.bn.running_mean, self.bn.running_var, training=True)
        self.train()
        if self.fails:
            raise OSError("a failure of the model")
        return self.dropout(y)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("function", [find_targets, fold_batch_norm])
def test_the_model_is_left_as_it_was(function, fails):
    model = Restless(fails).train()
    model.bn.eval()
    model.fc.bias.requires_grad_(False)
    model.fc.register_forward_hook(lambda module, args, output: None)
    before = state(model)
    if fails:
        with pytest.raises(OSError, match="a failure of the model"):
            function(model, (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),))
    else:
        assert function(model, (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)) is not None
    assert state(model) == before


def test_undisturbed_is_eval_mode_without_gradients():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout())
    with undisturbed(model):
        assert not any(m.training for m in model.modules())
        assert not model(torch.randn(3, 8)).requires_grad
        assert not torch.backends.mha.get_fastpath_enabled()
    assert all(m.training for m in model.modules())


# --- arrays ---------------------------------------------------------------------------------------------------------


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (4, 3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), (2, 1), (1, 0), (1, 2)), (2, 3, 9, 8)),
    "conv2d without bias": (lambda: nn.Conv2d(3, 5, 3, bias=False), (2, 3, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 7, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, stride=2, groups=4), (2, 4, 7, 8)),
    "same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), (2, 3, 9, 8)),
    "valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 9, 8)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, 2, 2), (2, 3, 20)),
    "conv1d same": (lambda: nn.Conv1d(3, 4, 4, padding="same"), (2, 3, 20)),
    "conv1d grouped, dilated": (lambda: nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4), (2, 4, 20)),
    "channels last": (lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), (2, 3, 9, 8)),
}


# torch warns of a copy for some of these paddings, from wherever the convolution is called
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_layer_computes_what_the_module_does(make, shape, relu, double):
    dtype = torch.float64 if double else torch.float32
    model = nn.Sequential(make().to(dtype), nn.ReLU() if relu else nn.Tanh())
    x = torch.randn(shape, dtype=dtype)
    (target,) = find_targets(model, (x,))
    layer = layer_of(target)
    assert (layer.name, layer.relu, layer.weight.dtype) == ("0", relu, np.float64 if double else np.float32)
    with torch.no_grad():
        expected = model[0](x)
    expected = (expected.relu() if relu else expected).numpy()
    np.testing.assert_allclose(layer(x.numpy()), expected, rtol=0, atol=1e-12 if double else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    module = nn.Conv2d(3, 4, 3).to(dtype)
    layer = layer_of(Target("c", module, True, 1))
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert np.array_equal(layer.weight, module.weight.detach().float().numpy())


def test_arrays_are_copies():
    module = nn.Linear(4, 4)
    layer = layer_of(Target("fc", module, False, 1))
    layer.weight[:] = 0
    layer.bias[:] = 0
    assert module.weight.abs().min() > 0 and module.bias.abs().min() > 0


def test_layers_of_something_else_are_refused():
    with pytest.raises(ValueError, match="'e' is no plain Linear"):
        layer_of(Target("e", nn.Embedding(3, 3), False, 1))


def test_layers_make_a_network():
    """The whole way: the arrays of a model compute what it does, as `nettrim.network` runs them."""
    model, x = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(6, 8)
    layers = [layer_of(t) for t in find_targets(model, (x,))]
    with torch.no_grad():
        np.testing.assert_allclose(flow.run(layers, [None] * 3, x.numpy())[-1], model(x).numpy(), atol=1e-5)


# --- batch norms ----------------------------------------------------------------------------------------------------


NORMS = {
    "linear": (lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5)], (4, 6)),
    "linear without bias": (lambda: [nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)], (4, 6)),
    "conv1d": (lambda: [nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5, eps=0.1)], (4, 3, 9)),
    "conv2d": (lambda: [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)], (4, 3, 9, 8)),
    "not affine": (lambda: [nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False)], (4, 3, 9, 8)),
    "depthwise": (lambda: [nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)], (4, 4, 9, 8)),
    "dropout between": (lambda: [nn.Linear(6, 5), nn.Dropout(), nn.Identity(), nn.BatchNorm1d(5)], (4, 6)),
    "other padding": (
        lambda: [nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(5)],
        (4, 3, 9, 8),
    ),
}


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("make, shape", NORMS.values(), ids=NORMS)
def test_folding_keeps_the_outputs(make, shape, double):
    dtype = torch.float64 if double else torch.float32
    model = trained(nn.Sequential(*make(), nn.ReLU())).to(dtype).train()
    last = len(model) - 2
    x, weight = torch.randn(shape, dtype=dtype), model[0].weight
    original = copy.deepcopy(model).eval()
    assert fold_batch_norm(model, (x,)) == [("0", str(last))]
    assert type(model[last]) is nn.Identity and model[0].weight is weight and model[0].bias.dtype == dtype
    assert all(m.training for m in model.modules())
    model.eval()
    with torch.no_grad():
        for inputs in (x, 3 * torch.randn(shape, dtype=dtype)):
            torch.testing.assert_close(model(inputs), original(inputs), rtol=0, atol=1e-12 if double else 2e-5)
    if getattr(model[0], "padding_mode", "zeros") == "zeros":
        assert relus(model, x) == {"0": True}


class Twice(nn.Module):
    """Conv and batch norm, of which one is used twice, in one way or another."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        if self.how == "outputs of the layer":
            return z + y
        if self.how == "layer":
            return z + self.conv(z)
        if self.how == "batch norm":
            return self.bn(z)
        if self.how == "its parameters":
            return z * self.bn.weight.sum()
        if self.how == "the layer's parameters":
            return z * self.conv.weight.sum()
        return z


@pytest.mark.parametrize(
    "how", ["outputs of the layer", "layer", "batch norm", "its parameters", "the layer's parameters", "once"]
)
def test_only_what_is_used_once_is_folded(how):
    model, x = trained(Twice(how)), torch.randn(2, 3, 5, 5)
    before = state(model)
    folded = fold_batch_norm(model, (x,))
    assert folded == ([("conv", "bn")] if how == "once" else [])
    assert (state(model) == before) is (how != "once")


LEFT = {
    "no running statistics": (lambda: [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False)], (4, 3, 9, 8)),
    "ReLU between": (lambda: [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)], (4, 3, 9, 8)),
    "reshape between": (lambda: [nn.Conv2d(3, 5, 3), nn.Flatten(2), nn.BatchNorm1d(5)], (4, 3, 9, 8)),
    # its channels are the second dimension, which is not that of the layer's outputs
    "linear on sequences": (lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5)], (4, 5, 6)),
    "convolution without a batch": (lambda: [nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5)], (3, 5)),
    "other normalisation": (lambda: [nn.Conv2d(3, 5, 3), nn.InstanceNorm2d(5)], (4, 3, 9, 8)),
    "before the layer": (lambda: [nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3)], (4, 3, 9, 8)),
    "transposed": (lambda: [nn.ConvTranspose2d(3, 5, 3), nn.BatchNorm2d(5)], (4, 3, 9, 8)),
    "parametrised": (
        lambda: [torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3)), nn.BatchNorm2d(5)],
        (4, 3, 9, 8),
    ),
}


@pytest.mark.parametrize("make, shape", LEFT.values(), ids=LEFT)
def test_other_batch_norms_are_left_alone(make, shape):
    model, x = trained(nn.Sequential(*make())), torch.randn(shape)
    before = state(model)
    assert fold_batch_norm(model, (x,)) == []
    assert state(model) == before


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_a_fold_that_rounding_spoils_is_undone(size):
    """Outputs that differ little from their large mean: float32 cannot hold them in another order of operations."""
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5), nn.BatchNorm1d(5)))
    nn.init.constant_(model[3].bias, size)
    nn.init.constant_(model[4].running_mean, size)
    nn.init.constant_(model[4].weight, 10.0)
    x = torch.randn(4, 6)
    modules, before = list(model.modules()), state(model)
    if size == 1:
        assert fold_batch_norm(model, (x,)) == [("0", "1"), ("3", "4")]
        return
    with pytest.raises(
        RuntimeError, match=r"as it was: its outputs change by \d.* of the largest entry, more than 1e-04"
    ):
        fold_batch_norm(model, (x,))
    assert state(model) == before and list(model.modules()) == modules


def test_a_model_that_no_longer_runs_is_put_back():
    class Picky(Twice):
        def forward(self, x):
            if not isinstance(self.bn, nn.BatchNorm2d):
                raise TypeError("where is my batch norm?")
            return self.bn(self.conv(x))

    model, x = trained(Picky("once")), torch.randn(2, 3, 5, 5)
    model.conv.bias = None
    bn, before = model.bn, state(model)
    with pytest.raises(RuntimeError, match="as it was: where is my batch norm") as caught:
        fold_batch_norm(model, (x,))
    assert isinstance(caught.value.__cause__, TypeError)
    assert model.bn is bn and model.conv.bias is None and state(model) == before


def test_outputs_without_tensors_cannot_be_checked():
    class Number(Twice):
        def forward(self, x):
            return float(super().forward(x).sum())

    model, x = trained(Number("once")), torch.randn(2, 3, 5, 5)
    before = state(model)
    with pytest.raises(ValueError, match="no tensors"):
        fold_batch_norm(model, (x,))
    assert state(model) == before


def test_folding_in_half_precision():
    model, x = (
        trained(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))).to(torch.bfloat16),
        torch.randn(4, 6).bfloat16(),
    )
    assert fold_batch_norm(model, (x,)) == [("0", "1")]
    assert model[0].weight.dtype == torch.bfloat16

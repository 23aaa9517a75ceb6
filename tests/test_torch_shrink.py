"""A model without the channels that its zeros make superfluous: smaller, with the same outputs."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import nettrim.torch as ntt  # noqa: E402


def dense(sizes, bias=True):
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LeNet(nn.Module):
    """Two convolutions and two dense layers, by functions and a `view`."""

    def __init__(self, padding=0):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 3, padding=padding)
        self.norm = nn.BatchNorm2d(6)
        self.c2 = nn.Conv2d(6, 8, 3, bias=False)
        side = (14 + 2 * padding - 2) // 2 - 2
        self.f1 = nn.Linear(8 * side**2, 20)
        self.f2 = nn.Linear(20, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.c1(x))), 2)
        x = F.relu(self.c2(x))
        x = x.view(x.size(0), -1)
        return self.f2(F.relu(self.f1(x)))


class Block(nn.Module):
    """A residual block: its own channels can go, those of the sum cannot."""

    def __init__(self, channels=4, inner=6):
        super().__init__()
        self.a = nn.Conv2d(channels, inner, 3, padding=1)
        self.b = nn.Conv2d(inner, channels, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.b(F.relu(self.a(x))))


def same(model, shrunk, x):
    model, small = copy.deepcopy(model).eval(), shrunk.model.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)


def sizes(shrunk):
    return {name: new for name, _, new in shrunk.layers}


def test_dense_layers():
    torch.manual_seed(0)
    model = dense([10, 8, 6, 3])
    with torch.no_grad():
        model[2].weight[:, [1, 4]] = 0
        model[4].weight[:, 2] = 0
        model[0].weight[5] = 0
        model[2].weight[3] = 0
        model[0].bias[5], model[2].bias[3] = 0.7, -0.2
    x = torch.randn(7, 10)
    shrunk = ntt.shrink(model, (x,))
    # two unread and one constant; one unread, one constant at relu(-0.2) = 0
    assert sizes(shrunk) == {"0": (10, 5), "2": (5, 4), "4": (4, 3)}
    same(model, shrunk, x)
    assert model[0].weight.shape == (8, 10), "the model itself is left as it was"
    count = sum(p.numel() for p in shrunk.model.parameters())
    assert shrunk.parameters == (sum(p.numel() for p in model.parameters()), count)
    assert "10 -> 10" not in shrunk.table() and "8 -> 5" in shrunk.table()
    assert not any(torch.equal(a, b) for a in shrunk.model.parameters() for b in model.parameters() if a is b)


def test_one_that_goes_leaves_another_without_a_reader():
    torch.manual_seed(1)
    model = dense([5, 6, 6, 2])
    with torch.no_grad():
        # neuron 0 of the second layer is unread; only it reads neuron 3 of the first
        model[4].weight[:, 0] = 0
        model[2].weight[1:, 3] = 0
    x = torch.randn(4, 5)
    shrunk = ntt.shrink(model, (x,))
    assert sizes(shrunk) == {"0": (5, 5), "2": (5, 5), "4": (5, 2)}
    same(model, shrunk, x)


@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions(padding):
    torch.manual_seed(2)
    model = LeNet(padding).eval()
    with torch.no_grad():
        for buffer in (model.norm.running_mean, model.norm.running_var, model.norm.bias):
            buffer.copy_(torch.rand(6) + 0.5)
        model.c2.weight[:, 1] = 0
        model.c1.weight[4] = 0
        model.f1.weight.view(20, 8, -1)[:, 6] = 0
        model.f1.weight.view(20, 8, -1)[:, 3, 1:] = 0
        model.f2.weight[:, :5] = 0
    x = torch.randn(3, 1, 14, 14)
    shrunk = ntt.shrink(model, (x,))
    assert sizes(shrunk)["c1"] == (1, 4) and sizes(shrunk)["c2"] == (4, 7) and sizes(shrunk)["f2"] == (15, 5)
    assert shrunk.model.norm.num_features == 4
    assert shrunk.model.c2.bias is not None, "the constant went into a bias that was not there"
    same(model, shrunk, x)


def test_a_constant_under_padding_stays():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[0], model[0].bias[1] = 0.5, -0.5
    x = torch.randn(2, 2, 8, 8)
    shrunk = ntt.shrink(model, (x,))
    # the second is zero after the ReLU, the first would be missing from the border
    assert sizes(shrunk)["0"] == (2, 3)
    same(model, shrunk, x)


def test_residual_blocks():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].b.weight[:, :3] = 0
        model[2].a.weight[:, 1] = 0
    x = torch.randn(2, 1, 9, 9)
    shrunk = ntt.shrink(model, (x,))
    assert sizes(shrunk)["1.a"] == (4, 3) and sizes(shrunk)["1.b"] == (3, 4) and sizes(shrunk)["2.a"] == (4, 6)
    same(model, shrunk, x)


class Odd(nn.Module):
    """What keeps channels in place: a second use, a slice, a fixed view, shared weights, an output."""

    def __init__(self):
        super().__init__()
        self.twice, self.sliced, self.fixed = nn.Linear(4, 4), nn.Linear(4, 6), nn.Conv1d(1, 3, 2)
        self.after, self.tail, self.shared = nn.Linear(3, 2), nn.Linear(9, 2), nn.Linear(4, 4)
        self.shared.weight = self.twice.weight
        self.out = nn.Linear(2, 3)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.twice(x))))
        y = self.after(self.sliced(x)[:, :3])
        z = self.tail(self.fixed(x[:, None]).view(-1, 9))
        return self.out(y + z + self.shared(x)[:, :2]), y


def test_what_cannot_go_stays():
    torch.manual_seed(5)
    model = Odd()
    with torch.no_grad():
        for module in (model.sliced, model.fixed, model.after, model.tail):
            module.weight[0] = 0
        for module in (model.after, model.tail, model.out):
            module.weight[:, 0] = 0
    x = torch.randn(3, 4)
    shrunk = ntt.shrink(model, (x,))
    assert all(old == new for _, old, new in shrunk.layers)


def test_a_dead_network_keeps_a_channel():
    model = dense([3, 4, 2])
    nn.init.zeros_(model[2].weight)
    x = torch.randn(2, 3)
    shrunk = ntt.shrink(model, (x,))
    assert sizes(shrunk) == {"0": (3, 1), "2": (1, 2)}
    same(model, shrunk, x)
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[2].weight)
    shrunk = ntt.shrink(model, (x,))
    assert sizes(shrunk) == {"0": (3, 1), "2": (1, 2)}
    same(model, shrunk, x)


@given(seed=st.integers(0, 2**31), zeros=st.floats(0, 1), bias=st.booleans())
@example(seed=0, zeros=0.6, bias=True)
@settings(max_examples=30, deadline=None)
def test_outputs_stay(seed, zeros, bias):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    width = [int(n) for n in rng.integers(1, 6, 4)]
    conv = [
        nn.Conv2d(2, width[0], 3, bias=bias),
        nn.Tanh(),
        nn.AvgPool2d(2, padding=1),
        nn.Conv2d(width[0], width[1], 2),
    ]
    model = nn.Sequential(
        *conv, nn.LeakyReLU(), nn.Flatten(), nn.Linear(width[1] * 9, width[2], bias=bias), nn.Sigmoid(), nn.Dropout(),
        nn.Linear(width[2], 3, bias=bias),
    )  # fmt: skip
    with torch.no_grad():
        for module in model:
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                rows, columns = (torch.from_numpy(rng.random(n) < zeros / 2) for n in module.weight.shape[:2])
                module.weight[rows] = 0
                module.weight[:, columns] = 0
    x = torch.randn(2, 2, 8, 8)
    shrunk = ntt.shrink(model, (x,))
    same(model, shrunk, x)
    assert shrunk.parameters[1] <= shrunk.parameters[0] + 3 + sum(width)
    # nothing is left to be done
    again = ntt.shrink(shrunk.model, (x,))
    assert [row[2] for row in again.layers] == [row[2] for row in shrunk.layers]


@pytest.mark.parametrize("penalty", ["inputs", "outputs"])
def test_after_structured_pruning(penalty):
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), dense([128, 20, 4])
    )
    with torch.no_grad():
        # some channels and neurons matter little
        model[2].weight[:, 4:] *= 0.02
        model[0].weight[6:] *= 0.02
        model[0].bias[6:] *= 0.02
        model[5][2].weight[:, 12:] *= 0.02
        model[5][0].weight[17:] *= 0.02
    x = torch.randn(300, 1, 8, 8)
    pruned = ntt.prune(model, [x], epsilon=0.1, penalty=penalty)
    assert all(r.status == "solved" for r in pruned.reports)
    shrunk = ntt.shrink(pruned.model, (x[:4],))
    assert shrunk.parameters[1] < 0.8 * shrunk.parameters[0]
    same(pruned.model, shrunk, x[:10])
    # the same happens where there is no torch: rows of inputs, or outputs, leave as a whole
    unit = {"inputs": (0, 2), "outputs": (1,)}[penalty]
    weight = pruned.model[2].weight.detach().movedim(1, 0) if 2 in unit else pruned.model[2].weight.detach()
    groups = (weight != 0).flatten(1)
    assert (groups.any(1) == groups.all(1)).all() or penalty == "outputs"


def test_modes_and_flags_stay():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[3].weight[:, 1] = 0
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    shrunk = ntt.shrink(model, (torch.randn(6, 4),))
    assert [m.training for m in shrunk.model] == [True, False, True, True]
    assert not shrunk.model[0].weight.requires_grad and shrunk.model[3].weight.requires_grad
    assert shrunk.model[1].running_mean.shape == (4,) and shrunk.model[1].num_features == 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    shrunk.model.train()(torch.randn(6, 4)).sum().backward()


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_is_refused():
    with pytest.raises(TypeError, match="example must be a tuple"):
        ntt.shrink(dense([2, 2]), torch.randn(1, 2))
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx"):
        ntt.shrink(Branches(), (torch.randn(2),))
    with pytest.raises(ValueError, match="penalty must be None, 'inputs' or 'outputs'"):
        ntt.prune(dense([2, 2]), [torch.randn(3, 2)], penalty="rows")
    with pytest.raises(ValueError, match="needs method='auto' or 'admm'"):
        ntt.prune(dense([2, 2]), [torch.randn(3, 2)], penalty="inputs", method="working_set")


class Two(nn.Module):
    """Two dense layers, and whatever a function does in between; the first neuron is read by nothing."""

    def __init__(self, between, conv=False, extra=None):
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3) if conv else nn.Linear(8, 6)
        self.b = nn.Linear(6, 5)
        self.c = nn.Linear(*extra) if extra else None
        self.between = between
        with torch.no_grad():
            self.b.weight[:, 0] = 0
            self.a.weight[0] *= 3

    def forward(self, x):
        return self.between(self, F.relu(self.a(x)))


KEPT = {
    "topk": (lambda m, h: m.b(h) + m.c(torch.topk(h, 3, dim=1)[0]), False, (3, 5)),
    "max": (lambda m, h: m.b(h) * h.max(1, keepdim=True).values, False, None),
    "chunk": (lambda m, h: m.b(h) + m.c(torch.chunk(h, 2, 1)[1]), False, (3, 5)),
    "tuple": (lambda m, h: (m.b(h), h), False, None),
    "dict": (lambda m, h: {"logits": m.b(h), "features": h}, False, None),
    "size of the channels": (lambda m, h: m.b(h) / h.size(-1) ** 0.5, False, None),
    "shape of the channels": (lambda m, h: m.b(h) / h.shape[1], False, None),
    "pooled over the channels": (lambda m, h: m.b(F.max_pool1d(h, 3, 1, 1)), False, None),
    "averaged over the channels": (lambda m, h: m.b(F.avg_pool1d(h[:, None], 3, 1, 1)[:, 0]), False, None),
    "in place beside it": (lambda m, h: (torch.tanh_(h), m.b(h))[1], False, None),
    "a literal width": (lambda m, h: m.b(h.view(-1, 6)), False, None),
}
GONE = {
    "plain": (lambda m, h: m.b(h), False, None),
    "size of the batch": (lambda m, h: m.b(h) / h.size(0), False, None),
    "pooled by its size": (lambda m, h: m.b(F.avg_pool2d(h, h.size()[2:]).flatten(1)), True, None),
    "pooled by its shape": (
        lambda m, h: m.b(F.avg_pool2d(h, (h.shape[2], h.shape[-1])).view(h.shape[0], -1)),
        True,
        None,
    ),
    "reshape by name": (lambda m, h: m.b(F.adaptive_max_pool2d(h, 1).reshape(shape=(h.size(0), -1))), True, None),
    "reshape of two axes": (lambda m, h: m.b(h.reshape(h.size(0), -1)), False, None),
    "eval dropout": (lambda m, h: m.b(F.dropout(h, 0.5, m.training)), False, None),
}


@pytest.mark.parametrize("case", KEPT)
def test_channels_that_something_else_sees_stay(case):
    between, conv, extra = KEPT[case]
    torch.manual_seed(7)
    model = Two(between, conv, extra).eval()
    x = torch.randn(400, 8)
    # an example that does not show the difference: the first neuron is silent on it
    quiet = x[F.relu(model.a(x))[:, 0] == 0][:16]
    shrunk = ntt.shrink(model, (quiet,))
    assert sizes(shrunk)["a"] == (8, 6)
    torch.testing.assert_close(shrunk.model(x), model(x))


@pytest.mark.parametrize("case", GONE)
@pytest.mark.parametrize("dead", [False, True], ids=["unread", "constant"])
def test_channels_that_nothing_else_sees_go(case, dead):
    between, conv, extra = GONE[case]
    torch.manual_seed(8)
    model = Two(between, conv, extra).eval()
    with torch.no_grad():
        if dead:
            model.a.weight[3], model.a.bias[3] = 0, 0.5
    x = torch.randn(20, 2, 9, 9) if conv else torch.randn(20, 8)
    shrunk = ntt.shrink(model, (x[:3],))
    assert sizes(shrunk)["a"][1] == (4 if dead else 5) and sizes(shrunk)["b"][0] == sizes(shrunk)["a"][1]
    torch.testing.assert_close(shrunk.model(x), model(x))


def test_padding_of_averages_keeps_constants():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 2, 1), nn.Flatten())
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, 1.0
    # on images of 2 x 2 the constant happens to be the same everywhere
    shrunk = ntt.shrink(model, (torch.randn(2, 1, 2, 2),))
    assert sizes(shrunk)["0"] == (1, 4)
    same(model, shrunk, torch.randn(2, 1, 16, 16))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 1)
        with torch.no_grad():
            self.b.weight[:, 1] = 0

    def forward(self, x, mask=None, scale=1.0):
        h = F.relu(self.a(x)) * scale
        if mask is not None:
            h = h * mask
        return (self.b(h), self.aux(h)) if self.training else self.b(h)


def test_arguments_that_are_not_given_and_training_branches():
    model = Masked()
    x = torch.randn(5, 4)
    with pytest.warns(UserWarning, match="layers aux do not run in evaluation mode"):
        shrunk = ntt.shrink(model, (x,))
    same(model, shrunk, x)
    with pytest.warns(UserWarning, match="do not run"):
        named = ntt.shrink(model, (), {"x": x})
    assert [row[2] for row in named.layers] == [row[2] for row in shrunk.layers]


def test_a_pattern_that_is_lost_is_warned_of():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight *= torch.tensor([1, 0, 1, 0, 0, 1, 0, 1.0])
    with pytest.warns(UserWarning, match="layers 2 had 2:4 patterns"):
        shrunk = ntt.shrink(model, (torch.randn(3, 8),))
    assert sizes(shrunk)["2"] == (4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ntt.shrink(lambda x: x, (torch.randn(2),)), TypeError, "model must be a torch.nn.Module"),
        (lambda: ntt.shrink(dense([2, 2]), ()), ValueError, "does not run on the example"),
        (lambda: ntt.shrink(dense([2, 2]), (torch.randn(3, 2).long(),)), ValueError, "does not run on the example"),
    ],
)
def test_what_does_not_run_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_single_sample_without_a_batch():
    model = dense([4, 5, 2])
    with torch.no_grad():
        model[2].weight[:, 0] = 0
    assert sizes(ntt.shrink(model, (torch.randn(4),)))["0"] == (4, 5)


def test_a_masked_module_is_named():
    from torch.nn.utils import prune

    model = dense([4, 5, 2])
    prune.l1_unstructured(model[0], "weight", 0.5)
    model(torch.randn(2, 4))
    with pytest.raises(ValueError, match="layer '0'"):
        ntt.shrink(model, (torch.randn(2, 4),))

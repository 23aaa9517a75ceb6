"""Zeros stay zero under every optimiser, and would not without; the loop that trains the rest."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from nettrim.torch.finetune import finetune, keep_zeros  # noqa: E402

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    # its averages of a matrix are a row and a column
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


def network(seed=0, dtype=torch.float32):
    """Two layers without zeros."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4)).to(dtype)


def prune(model):
    """Zero about two thirds of the weights; their masks by name."""
    generator = torch.Generator().manual_seed(1)
    masks = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                masks[name] = torch.rand(p.shape, generator=generator) < 0.67
                p.masked_fill_(masks[name], 0)
    return masks


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(60, 12, generator=generator), torch.randint(4, (60,), generator=generator)


def backward(model, data):
    x, y = data
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    torch.nn.functional.cross_entropy(model(x.to(dtype)), y).backward()


def train(model, optimizer, data, steps=5):
    for _ in range(steps):
        backward(model, data)
        optimizer.step()


def revived(model, masks):
    """How many entries that were pruned are not zero."""
    return sum(int(torch.count_nonzero(model.get_parameter(name).detach()[mask])) for name, mask in masks.items())


def all_bits_zero(model, masks):
    """Not -0 either."""
    return all(not model.get_parameter(name).detach()[mask].view(torch.int32).any() for name, mask in masks.items())


# keep_zeros ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_and_would_not_without(name, data):
    """The optimiser has a momentum from training the dense model, which alone revives what is pruned after."""
    ends = {}
    for kept in (False, True):
        model = network()
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer, data)
        masks = prune(model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        if kept:
            with keep_zeros(model, optimizer) as zeros:
                for _ in range(5):
                    train(model, optimizer, data, 1)
                    assert revived(model, masks) == 0
                    assert all_bits_zero(model, masks)
                zeros.check()
            assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
        else:
            train(model, optimizer, data)
        ends[kept] = revived(model, masks)
    assert ends[True] == 0
    assert ends[False] > 0.9 * sum(int(mask.sum()) for mask in masks.values())


def test_masked_gradients_alone_are_not_enough(data):
    """Why the optimiser is to be given: the momentum from before moves the zeros until the context is left."""
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    train(model, optimizer, data)
    masks = prune(model)
    with keep_zeros(model) as kept:
        train(model, optimizer, data, 1)
        assert revived(model, masks) > 0
        with pytest.raises(RuntimeError, match="of 0.weight.* of 2.weight"):
            kept.check()
    kept.check()
    assert all_bits_zero(model, masks)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_an_optimizer_a_new_one_keeps_the_zeros_too(name, data):
    """No gradient, no state: nothing moves them even inside."""
    model = network()
    masks = prune(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    with keep_zeros(model) as kept:
        train(model, optimizer, data)
        kept.check()
    assert revived(model, masks) == 0


def test_the_state_is_cleared_so_that_nothing_is_revived_later(data):
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, data)
    masks = prune(model)
    weight, mask = model.get_parameter("0.weight"), masks["0.weight"]
    assert optimizer.state[weight]["exp_avg"][mask].any()
    with keep_zeros(model, optimizer):
        train(model, optimizer, data, 1)
    for key in ("exp_avg", "exp_avg_sq"):
        assert not optimizer.state[weight][key][mask].any()
        assert optimizer.state[weight][key][~mask].any()
    # the count of steps is not of the weight's shape
    assert float(optimizer.state[weight]["step"]) == 6


def test_the_step_count_of_a_scalar_is_left_alone():
    """Adam's count has no dimensions, as the parameter."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.offset = (torch.nn.Parameter(torch.tensor(v)) for v in (0.0, 1.0))

        def forward(self, x):
            return self.gain * x + self.offset

    model = Scaled()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with keep_zeros(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.ones(4)) - 3).square().mean().backward()
            optimizer.step()
    assert model.gain.item() == 0 and model.offset.item() > 1
    assert optimizer.state[model.gain]["step"].item() == 3


def test_a_state_of_codes_is_left_alone(data):
    """Of integers that stand for other numbers, as of 8-bit optimisers, 0 need not mean 0."""
    model = network()
    masks = prune(model)
    weight = model.get_parameter("0.weight")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    optimizer.state[weight]["codes"] = torch.full(weight.shape, 127, dtype=torch.uint8)
    with keep_zeros(model, optimizer):
        train(model, optimizer, data, 1)
    assert bool((optimizer.state[weight]["codes"] == 127).all()) and revived(model, masks) == 0


def test_trains_as_the_masked_model_does(data):
    """The non-zeros move as if the zeros were no parameters at all."""
    model, other = network(dtype=torch.float64), network(dtype=torch.float64)
    masks = prune(model)
    prune(other)
    with keep_zeros(model, optimizer := torch.optim.Adam(model.parameters(), lr=1e-2)):
        train(model, optimizer, data)
    free = {name: p.detach()[~masks[name]].clone() for name, p in other.named_parameters() if name in masks}
    biases = {name: p.detach().clone() for name, p in other.named_parameters() if name not in masks}
    leaves = [a.requires_grad_() for a in (*free.values(), *biases.values())]
    optimizer = torch.optim.Adam(leaves, lr=1e-2)
    x, y = data
    for _ in range(5):
        optimizer.zero_grad()
        weights = {
            name: torch.zeros(masks[name].shape, dtype=a.dtype).masked_scatter(~masks[name], a)
            for name, a in free.items()
        }
        made = torch.func.functional_call(other, weights | biases, (x.double(),))
        torch.nn.functional.cross_entropy(made, y).backward()
        optimizer.step()
    for name, a in free.items():
        torch.testing.assert_close(model.get_parameter(name).detach()[~masks[name]], a.detach())


def test_gradients_are_masked_and_nothing_else(data):
    model, other = network(), network()
    masks = prune(model)
    prune(other)
    backward(other, data)
    with keep_zeros(model):
        backward(model, data)
    for name, p in model.named_parameters():
        expected = other.get_parameter(name).grad.clone()
        if name in masks:
            assert expected[masks[name]].any()
            expected[masks[name]] = 0
        assert torch.equal(p.grad, expected)


def test_a_gradient_that_is_not_finite_does_not_reach_the_zeros():
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 0.0]]))
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    with keep_zeros(model, optimizer) as kept:
        model(torch.full((1, 3), math.inf)).sum().backward()
        assert not model.weight.grad[0, 1].isfinite() and model.weight.grad[0, [0, 2]].tolist() == [0, 0]
        optimizer.step()
        kept.check()
    assert model.weight[0, [0, 2]].tolist() == [0, 0] and not model.weight[0, 1].isfinite()


class Stop(Exception):
    pass


def test_an_exception_inside_removes_the_hooks(data):
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    masks = prune(model)
    with pytest.raises(Stop), keep_zeros(model, optimizer):
        train(model, optimizer, data, 1)
        with torch.no_grad():
            model.get_parameter("0.weight").add_(1)
        raise Stop
    assert revived(model, masks) == 0
    backward(model, data)
    assert all(model.get_parameter(name).grad[mask].any() for name, mask in masks.items())
    optimizer.step()
    assert revived(model, masks) > 0


def test_several_groups_and_contexts_one_after_the_other(data):
    model = network()
    masks = prune(model)
    groups = [
        {"params": [model.get_parameter("0.weight")], "lr": 0.1},
        {"params": [model.get_parameter("2.weight")], "weight_decay": 0.1, "momentum": 0},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for _ in range(2):
        with keep_zeros(model, optimizer) as kept:
            assert kept.names == ["0.weight", "2.weight"]
            train(model, optimizer, data)
            kept.check()
    assert revived(model, masks) == 0


@pytest.mark.parametrize("names", [["0.weight"], ["0.*"], ["re:0\\.w.*"]])
def test_names_choose_the_parameters(names, data):
    model = network()
    masks = prune(model)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    with keep_zeros(model, optimizer, names):
        train(model, optimizer, data)
    assert revived(model, {"0.weight": masks["0.weight"]}) == 0
    assert revived(model, {"2.weight": masks["2.weight"]}) > 0


def test_counts_and_check():
    model = network()
    masks = prune(model)
    total = sum(p.numel() for p in (model.get_parameter(name) for name in masks))
    with keep_zeros(model) as kept:
        assert kept.nnz() == total - sum(int(mask.sum()) for mask in masks.values())
        kept.check()
        index = tuple(int(i) for i in masks["2.weight"].nonzero()[0])
        with torch.no_grad():
            model.get_parameter("2.weight")[index] = 1e-30
        with pytest.raises(RuntimeError, match="no longer are: 1 of 2.weight"):
            kept.check()


def test_tied_and_frozen_parameters(data):
    """A tied one is kept under its first name and can be named by either; one without gradient gets no hook."""
    model = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 12), torch.nn.Linear(12, 4))
    model[1].weight = model[0].weight
    masks = prune(model)
    model[2].weight.requires_grad_(False)
    optimizer = OPTIMIZERS["adam"](p for p in model.parameters() if p.requires_grad)
    with keep_zeros(model, optimizer, ["1.weight", "2.weight"]) as kept:
        assert kept.names == ["1.weight", "2.weight"]
        train(model, optimizer, data)
        kept.check()
    with keep_zeros(model) as kept:
        assert kept.names == ["0.weight", "2.weight"]
    assert revived(model, masks) == 0


def test_sparse_gradients_are_refused():
    """The row of padding_idx is zero."""
    model = torch.nn.Embedding(5, 3, padding_idx=0, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with keep_zeros(model, optimizer), pytest.raises(ValueError, match="gradient of weight is sparse"):
        model(torch.tensor([1, 2])).sum().backward()
    model(torch.tensor([1, 2])).sum().backward()
    assert model.weight.grad.is_sparse


def test_bfloat16(data):
    model = network(dtype=torch.bfloat16)
    masks = prune(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with keep_zeros(model, optimizer) as kept:
        train(model, optimizer, data)
        kept.check()
    assert revived(model, masks) == 0 and model.get_parameter("0.weight").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "net"}, TypeError, "model must be a torch.nn.Module; got str"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a torch.optim.Optimizer; got str"),
        ({"names": "0.weight"}, TypeError, "names must be a list of names"),
        ({"names": ["1.weight"]}, ValueError, "no parameter fits '1.weight': 0.weight, 0.bias, 2.weight, 2.bias"),
    ],
)
def test_wrong_arguments_of_keep_zeros(change, error, message):
    arguments = {"model": network(), **change}
    with pytest.raises(error, match=message), keep_zeros(**arguments):
        raise AssertionError("entered")


def test_an_optimizer_of_another_copy_is_refused():
    optimizer = OPTIMIZERS["sgd"](network().parameters())
    message = "holds none of the model's parameters"
    with pytest.raises(ValueError, match=message), keep_zeros(network(), optimizer):
        raise AssertionError("entered")


def test_a_named_parameter_that_is_not_floating_is_refused():
    model = torch.nn.Module()
    model.codes = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="codes must be of a floating dtype"), keep_zeros(model, names=["codes"]):
        raise AssertionError("entered")
    with keep_zeros(model) as kept:
        assert kept.names == []


# finetune ------------------------------------------------------------------------------------------------------------


def loader(data, size=25):
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def test_finetune_learns_on_the_pattern(data):
    model = network()
    masks = prune(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    seen = []
    losses = finetune(
        model, loader(data), torch.nn.functional.cross_entropy, optimizer, 20, lambda *row: seen.append(row)
    )
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]
    assert seen == list(enumerate(losses, 1))
    assert revived(model, masks) == 0


def test_a_schedule_steps_with_every_batch(data):
    model = network()
    masks = prune(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batches, rates = loader(data), []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    finetune(
        model, batches, torch.nn.functional.cross_entropy, optimizer, 2,
        lambda *row: rates.append(optimizer.param_groups[0]["lr"]), schedule=schedule,
    )  # fmt: skip
    assert rates == [0.5 ** len(batches), 0.25 ** len(batches)] and revived(model, masks) == 0
    other = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(other)
    for wrong, message in ((schedule, "of the optimizer given"), (plateau, "step by itself")):
        with pytest.raises(ValueError, match=f"schedule must {'be ' if wrong is schedule else ''}{message}"):
            finetune(model, batches, torch.nn.functional.cross_entropy, other, schedule=wrong)
    with pytest.raises(TypeError, match="schedule must be a torch.optim.lr_scheduler.LRScheduler; got str"):
        finetune(model, batches, torch.nn.functional.cross_entropy, other, schedule="cosine")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_mean_loss_is_over_the_samples(data):
    """The last batch has 10 samples instead of 25; without a step all are of one model."""
    model = network()
    prune(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    losses = finetune(model, loader(data), torch.nn.functional.cross_entropy, optimizer, 2)
    expected = float(torch.nn.functional.cross_entropy(model(data[0]), data[1]).detach())
    assert losses == pytest.approx([expected] * 2, rel=1e-6)
    means = [float(torch.nn.functional.cross_entropy(model(x), y).detach()) for x, y in loader(data)]
    assert abs(sum(means) / 3 - expected) > 1e-3


def test_gradients_are_those_of_the_batch_alone(data):
    """What a gradient held before, or from the batch before, does not count."""
    model, other = network(), network()
    backward(model, data)
    (x, y), *_ = loader(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    finetune(model, [(x, y)], torch.nn.functional.cross_entropy, optimizer, 2)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), (x, y), 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


class Sum(torch.nn.Module):
    """Two arguments, and a record of the mode it is called in."""

    def __init__(self):
        super().__init__()
        self.layers, self.drop, self.modes = network(), torch.nn.Dropout(0.5), []

    def forward(self, a, b):
        self.modes.append((self.training, self.drop.training, self.layers.training))
        return self.layers(self.drop(a) + b)


def test_modes_are_restored_and_all_arguments_passed(data):
    model = Sum().eval()
    model.layers.train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    batches = [(data[0], 0.5, data[1])]
    losses = finetune(model, batches, torch.nn.functional.cross_entropy, optimizer)
    assert len(losses) == 1 and model.modes == [(True, True, True)]
    assert (model.training, model.drop.training, model.layers.training) == (False, False, True)


def test_a_failure_restores_modes_and_hooks(data):
    model = network().eval()
    masks = prune(model)
    optimizer = OPTIMIZERS["momentum"](model.parameters())

    def batches():
        yield from loader(data)
        raise Stop

    with pytest.raises(Stop):
        finetune(model, batches(), torch.nn.functional.cross_entropy, optimizer)
    assert not any(module.training for module in model.modules())
    assert revived(model, masks) == 0
    backward(model, data)
    assert all(model.get_parameter(name).grad[mask].any() for name, mask in masks.items())


def test_a_loss_that_is_not_finite_stops_before_the_step(data):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(FloatingPointError, match="the loss is nan in batch 1 of epoch 1"):
        finetune(model, loader(data), lambda z, y: z.sum() * math.nan, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loader": []}, ValueError, "loader is empty: it gave no sample in epoch 1$"),
        ({"loader": [torch.zeros(3, 12)]}, TypeError, "loader must give tuples .*; got Tensor"),
        ({"loader": [(torch.zeros(3, 12),)]}, TypeError, "loader must give tuples .*; got tuple of 1"),
        ({"loss": lambda z, y: z}, ValueError, r"scalar tensor; got Tensor of shape \(25, 4\)"),
        ({"loss": lambda z, y: 1.0}, ValueError, "scalar tensor; got float"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1; got 0"),
        ({"epochs": True}, ValueError, "epochs must be a whole number of at least 1; got True"),
        ({"epochs": 1.5}, ValueError, "epochs must be a whole number of at least 1; got 1.5"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer; got NoneType"),
        ({"model": None}, TypeError, "model must be a torch.nn.Module; got NoneType"),
        ({"names": ["head"]}, ValueError, "no parameter fits 'head'"),
    ],
)
def test_wrong_arguments_of_finetune(change, error, message, data):
    model = network()
    arguments = {
        "model": model,
        "loader": loader(data),
        "loss": torch.nn.functional.cross_entropy,
        "optimizer": OPTIMIZERS["sgd"](model.parameters()),
        **change,
    }
    with pytest.raises(error, match=message):
        finetune(**arguments)


def test_a_generator_is_used_up_after_an_epoch(data):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match=r"no sample in epoch 2 \(.*a generator is used up\)"):
        finetune(model, iter(loader(data)), torch.nn.functional.cross_entropy, optimizer, 2)

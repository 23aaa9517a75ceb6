"""What studies are made of: models, the training loop and its masks, hard-concrete gates, frozen features."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nettrim.studies import data, features, models, training  # noqa: E402
from nettrim.studies.hard_concrete import Gates, fold, neuron_masks, train_with_gates, with_gates  # noqa: E402


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def small(seed=0, sizes=(784, 30, 20, 10)):
    torch.manual_seed(seed)
    return models.fully_connected(sizes, dropout=0.0)


def batches(samples, size=50, seed=0):
    return training.Batches(*samples.train, size, seed)


@pytest.fixture(scope="module")
def samples():
    return data.load("synthetic_images")


@pytest.fixture
def images(monkeypatch):
    # enough for covariances of 108 x 108
    monkeypatch.setattr(features, "PATCHES", 3000)
    made = data.load("synthetic_colours")
    few = {part: tuple(a[:count] for a in getattr(made, part)) for part, count in (("train", 60), ("test", 20))}
    return replace(made, validation=few["test"], **few)


# models


def test_lenet_300_100():
    model = models.lenet_300_100()
    assert parameters(model) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10 == 266_610
    assert [type(m).__name__ for m in model] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert [m.p for m in models.lenet_300_100(0.2) if isinstance(m, torch.nn.Dropout)] == [0.2, 0.2]


@pytest.mark.parametrize("norm", [True, False])
def test_vgg16(norm):
    model = models.vgg16(7, 1 / 32, norm, dropout=0.1)
    kinds = [type(m).__name__ for m in model]
    assert kinds.count("Conv2d") == 13 and kinds.count("MaxPool2d") == 5 and kinds.count("Linear") == 4
    assert kinds.count("BatchNorm2d") == (13 if norm else 0) and kinds.count("Dropout") == 3
    assert [m.out_features for m in model if isinstance(m, torch.nn.Linear)] == [128, 128, 31, 7]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="width must be"):
        models.vgg16(width=0)


def test_size_of_vgg16():
    with torch.device("meta"):
        model = models.vgg16(norm=False)
    # 14,714,688 of the convolutions are as published for ImageNet
    assert parameters(model) == 14_714_688 + 512 * 4096 + 4096 + 4096**2 + 4096 + 4096 * 1000 + 1000 + 10 * 1000 + 10


# training


def test_sgd_is_the_formula(samples):
    """Two steps, against v <- m v + g, w <- w - r v, with the subgradient of the l1 norm in g."""
    made, ours = small(), small()
    some = batches(samples, 300)
    training.sgd(made, some, 1, rate=0.05, momentum=0.5, penalty=0.01)
    velocity = {name: 0.0 for name, _ in ours.named_parameters()}
    for x, y in batches(samples, 300):
        ours.zero_grad()
        torch.nn.functional.cross_entropy(ours(x), y).backward()
        with torch.no_grad():
            for name, p in ours.named_parameters():
                gradient = p.grad + (0.01 * p.sign() if p.ndim == 2 else 0)
                velocity[name] = 0.5 * velocity[name] + gradient
                p -= 0.05 * velocity[name]
    for a, b in zip(made.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_sgd_learns_and_the_penalty_shrinks(samples):
    norms = {}
    for penalty, penalised in ((0.0, None), (3e-3, None), (3e-3, ["5.weight"])):
        model = small()
        losses = training.sgd(model, batches(samples), 4, penalty=penalty, penalised=penalised)
        assert losses[-1] < losses[0] and not model.training
        assert training.accuracy(model, *samples.test) > 0.9
        norms[penalty, penalised is None] = [float(model[k].weight.detach().abs().sum()) for k in (1, 5)]
    assert norms[3e-3, True][0] < 0.7 * norms[0.0, True][0]
    # the last layer's alone
    assert norms[3e-3, False][0] > 0.9 * norms[0.0, True][0] and norms[3e-3, False][1] < norms[0.0, True][1]


def test_masked_weights_stay_exactly_zero(samples):
    model = small()
    random = torch.Generator().manual_seed(0)
    masks = {f"{k}.weight": torch.rand(model[k].weight.shape, generator=random) < 0.3 for k in (1, 5)}
    masks["3.bias"] = np.arange(20) % 2 == 0
    free = model[1].weight.detach().clone()
    seen = []

    def progress(epoch, loss):
        found = dict(model.named_parameters())
        seen.append([int(torch.count_nonzero(found[name][~torch.as_tensor(m)])) for name, m in masks.items()])

    training.sgd(model, batches(samples), 6, momentum=0.9, rate=0.02, penalty=1e-4, masks=masks, progress=progress)
    assert seen == [[0, 0, 0]] * 6
    assert torch.count_nonzero(model[3].weight) == model[3].weight.numel()
    assert (model[1].weight != free)[masks["1.weight"]].float().mean() > 0.9
    assert training.accuracy(model, *samples.test) > 0.9


def test_a_full_mask_changes_nothing(samples):
    first, second = small(), small()
    training.sgd(first, batches(samples), 1)
    training.sgd(second, batches(samples), 1, masks={"1.weight": np.ones((30, 784), bool)})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_training_refuses(samples):
    model = small()
    some = batches(samples)
    with pytest.raises(ValueError, match=r"masks must be for parameters, 1\.weight.*got '2\.weight'"):
        training.sgd(model, some, 1, masks={"2.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask of 1\.weight must be bool of shape \(30, 784\); got float32"):
        training.sgd(model, some, 1, masks={"1.weight": torch.ones(30, 784)})
    with pytest.raises(ValueError, match="penalty must be"):
        training.sgd(model, some, 1, penalty=-1.0)
    with pytest.raises(ValueError, match="penalised must be"):
        training.sgd(model, some, 1, penalty=1.0, penalised=["7.weight"])
    with pytest.raises(ValueError, match="batches must have"):
        training.sgd(model, [], 1)
    with pytest.raises(FloatingPointError, match="smaller rate"):
        training.sgd(model, some, 3, rate=1e6)


def test_outputs(samples):
    model = models.fully_connected((784, 8, 10), dropout=0.5)
    made = training.outputs(model, samples.test[0], size=70)
    assert made.dtype == np.float32 and made.shape == (200, 10) and model.training
    np.testing.assert_allclose(made, model.eval()(torch.from_numpy(samples.test[0])).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norms", ["own", "targets"])
def test_training_to_outputs(samples, norms):
    """A network whose first layer was cut comes nearer to the dense one's outputs; what was cut stays so."""
    dense = small()
    training.sgd(dense, batches(samples), 3)
    wanted = {part: training.outputs(dense, getattr(samples, part)[0]) for part in ("train", "test")}
    threshold = dense[1].weight.detach().abs().flatten().quantile(0.9)
    masks = {"1.weight": dense[1].weight.detach().abs() > threshold}
    pruned = deepcopy(dense)
    pruned[1].weight.data *= masks["1.weight"]

    def error():
        made, target = training.outputs(pruned, samples.test[0]), wanted["test"]
        lengths = [np.linalg.norm(a, axis=1, keepdims=True) for a in (made, target)]
        return np.square(made / lengths[norms == "targets"] - target / lengths[1]).sum(1).mean()

    before = error()
    learn = {"epochs": 4, "norms": norms}
    losses = training.train_to_outputs(pruned, samples.train[0], wanted["train"], **learn, masks=masks)
    assert error() < 0.8 * before and losses[-1] < losses[0]
    assert not torch.count_nonzero(pruned[1].weight[~masks["1.weight"]])
    # oneself at twice the scale: nothing to learn but that scale, which is half of the norm
    first = training.train_to_outputs(deepcopy(dense), samples.train[0], 2 * wanted["train"], 1, rate=0.0, norms=norms)
    assert first[0] == pytest.approx(0.25 if norms == "targets" else 0.0, abs=1e-5)
    with pytest.raises(ValueError, match="norms must be one of own, targets"):
        training.train_to_outputs(pruned, samples.train[0], wanted["train"], norms="both")


# gates


LOCATIONS = (-3.0, -1.0, 0.0, 0.7, 2.5)


def gates(locations=LOCATIONS, **options):
    made = Gates(len(locations), **options)
    made.location.data = torch.tensor(locations)
    return made


@pytest.mark.parametrize("temperature", [2 / 3, 0.3])
def test_gates_are_zero_and_one_as_often_as_the_formulas_say(temperature):
    made, count = gates(temperature=temperature), 40_000
    torch.manual_seed(0)
    z = made.drawn((count,)).detach()
    assert z.min() == 0 and z.max() == 1
    for found, probability in (
        ((z != 0).float().mean(0), made.probability_on()),
        ((z == 1).float().mean(0), made.probability_open()),
    ):
        p = probability.detach()
        # five deviations of a binomial share
        assert bool(((found - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-6).all())
    by_hand = [1 / (1 + math.exp(temperature * math.log(0.1 / 1.1) - a)) for a in LOCATIONS]
    np.testing.assert_allclose(made.probability_on().detach(), by_hand, rtol=1e-5)
    mean, expected = float((z != 0).sum(1).float().mean()), float(made.expected_count().detach())
    variance = sum(p * (1 - p) for p in by_hand)
    assert abs(mean - expected) < 5 * math.sqrt(variance / count)


def test_the_distribution_between_zero_and_one():
    """P(z <= v) = 1 - P(s > t), t = (v + 0.1) / 1.2, at values strictly between."""
    made, count = gates(), 40_000
    torch.manual_seed(1)
    z = made.drawn((count,)).detach()
    for value in (0.1, 0.5, 0.9):
        t = (value + 0.1) / 1.2
        p = torch.sigmoid(2 / 3 * math.log(t / (1 - t)) - torch.tensor(LOCATIONS))
        found = (z <= value).float().mean(0)
        assert bool(((found - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-6).all())


def test_gates_have_gradients():
    made = gates()
    torch.manual_seed(0)
    (made.drawn((2000,)).sum() / 2000).backward()
    sampled = made.location.grad.clone()
    assert bool((sampled > 0).all())
    made.zero_grad()
    made.expected_count().backward()
    p = made.probability_on().detach()
    torch.testing.assert_close(made.location.grad, p * (1 - p))


def test_gates_in_both_modes():
    made, x = gates(), torch.ones(7, 5)
    made.train()
    assert not torch.equal(made(x)[0], made(x)[1])
    made.eval()
    expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-a)) - 0.1)) for a in LOCATIONS]
    for row in made(x).detach():
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)
    assert expected[0] == 0 and 0 < expected[2] < 1


def test_counts_are_exact():
    made = gates((0.5, 30.0, -2.0, 40.0, 0.5))
    # the probabilities of the second and the fourth are both 1 in float32
    assert [made.keep(k).tolist() for k in range(6)] == [[], [3], [1, 3], [0, 1, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4]]
    assert gates((1.0,) * 5).keep(3).tolist() == [0, 1, 2]
    for count in (-1, 6):
        with pytest.raises(ValueError, match="count must be from 0 to 5"):
            made.keep(count)


def test_what_gates_refuse():
    for options, message in (
        ({"size": 0}, "size"),
        ({"size": 3, "start": 1.0}, "start"),
        ({"size": 3, "temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(ValueError, match=f"{message} must be"):
            Gates(**options)
    with pytest.raises(TypeError, match="ends with an nn.Linear; got one that ends with ReLU"):
        with_gates(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    with pytest.raises(TypeError, match="ends with an nn.Linear"):
        with_gates(torch.nn.Linear(2, 2))


def test_folding_keeps_the_outputs(samples):
    model = small()
    gated = with_gates(model)
    gated[-2].location.data = torch.linspace(-4, 4, 20)
    plain = fold(gated)
    x = torch.from_numpy(samples.test[0])
    assert not plain.training and [type(a) for a in plain] == [type(a) for a in model]
    torch.testing.assert_close(plain(x), gated.eval()(x))
    assert not torch.equal(plain[-1].weight, model[-1].weight) and torch.equal(plain[1].weight, model[1].weight)


def test_training_with_gates(samples):
    """Gates close under a strong penalty; as many neurons stay as are asked for, and the network works with them."""
    network, kept = train_with_gates(small(), batches(samples), 5, strength=2.0, epochs=6)
    closed = int((network[-1].weight.abs().sum(0) == 0).sum())
    assert closed > 10 and kept.dtype == torch.bool and kept.shape == (20,) and int(kept.sum()) == 5
    masks = neuron_masks(network, kept)
    assert set(masks) == {"3.weight", "3.bias", "5.weight"}
    training.sgd(network, batches(samples), 5, masks=masks)
    assert torch.equal(network[-1].weight.abs().sum(0) > 0, kept)
    assert torch.equal(network[3].weight.abs().sum(1) + network[3].bias.abs() > 0, kept)
    assert training.accuracy(network, *samples.test) > 0.8
    # without a penalty, none of them closes
    open_, _ = train_with_gates(small(), batches(samples), 5, strength=0.0, epochs=1)
    assert bool((open_[-1].weight.abs().sum(0) > 0).all())


def test_what_training_with_gates_refuses(samples):
    with pytest.raises(ValueError, match="count must be from 0 to 20"):
        train_with_gates(small(), batches(samples), 21, 0.1)
    with pytest.raises(ValueError, match="strength must be"):
        train_with_gates(small(), batches(samples), 2, -0.1)
    with pytest.raises(ValueError, match=r"kept must be bool of shape \(20,\)"):
        neuron_masks(small(), torch.ones(20))
    with pytest.raises(TypeError, match="before its last one"):
        neuron_masks(torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)), torch.ones(4) > 0)


# frozen features


def test_frozen_features(images):
    made = features.frozen_features(images, seed=3, count=40)
    for part, count in (("train", 60), ("validation", 20), ("test", 20)):
        x, y = getattr(made, part)
        assert x.shape == (count, 40) and x.dtype == np.float32 and x.min() >= 0
        assert y is getattr(images, part)[1]
    np.testing.assert_allclose(np.square(made.train[0]).mean(0), 0.1, rtol=1e-4)
    again, other = (features.frozen_features(images, seed, 40) for seed in (3, 4))
    np.testing.assert_array_equal(made.train[0], again.train[0])
    assert not np.allclose(made.train[0], other.train[0])


def test_features_are_the_formula(images):
    """One image by hand: every patch centred, scaled and whitened, then its inner products with the filters."""
    x = images.train[0]
    chosen = features._learn(x, 6, np.random.default_rng(0))
    found = features._features(x[:1], chosen)[0].reshape(6, 2, 2)
    raw = np.empty((6, 27, 27))
    weights, offsets = chosen.weights.numpy().reshape(6, -1).astype(float), chosen.offsets.numpy()
    for i in range(27):
        for j in range(27):
            patch = x[0, :, i : i + 6, j : j + 6].ravel().astype(float)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + features.CONTRAST)
            raw[:, i, j] = np.maximum(weights @ patch - offsets - features.THRESHOLD, 0)
    halves = (slice(0, 14), slice(13, 27))
    by_hand = np.array([[raw[:, a, b].mean((1, 2)) for b in halves] for a in halves]).transpose(2, 0, 1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-5)


def test_whitened_activations(images):
    """Over many patches the activations of a filter, before the threshold, have mean 0 and deviation near 1."""
    x = images.train[0]
    chosen = features._learn(x, 20, np.random.default_rng(0))
    t = torch.from_numpy(x)
    raw = torch.nn.functional.conv2d(t, chosen.weights) / torch.sqrt(features._variances(t) + features.CONTRAST)
    raw -= chosen.offsets[:, None, None]
    assert abs(float(raw.mean())) < 0.05 and 0.7 < float(raw.std()) < 1.3


def test_features_know_nothing_of_test_images(images):
    made = features.frozen_features(images, count=40)
    x, y = images.test
    order = np.random.default_rng(0).permutation(len(x))
    moved = features.frozen_features(replace(images, test=(x[order], y[order])), count=40)
    np.testing.assert_allclose(moved.test[0], made.test[0][order], rtol=1e-4, atol=1e-6)
    changed = features.frozen_features(replace(images, test=(2 * x + 1, y), validation=(-x, y)), count=40)
    np.testing.assert_array_equal(changed.train[0], made.train[0])
    # nor of any label
    labels = np.zeros_like(images.train[1])
    other = features.frozen_features(replace(images, train=(images.train[0], labels)), count=40)
    np.testing.assert_array_equal(other.train[0], made.train[0])


def test_features_of_constant_images():
    """No patch has any variance: the features are numbers all the same."""
    flat = (np.ones((5, 3, 8, 8), np.float32), np.zeros(5, np.int64))
    made = features.frozen_features(data.DataSet("flat", flat, flat, flat), count=8)
    assert all(np.isfinite(x).all() for x, _ in (made.train, made.test))


def test_what_features_refuse(images, samples):
    with pytest.raises(ValueError, match="multiple of 4; got 30"):
        features.frozen_features(images, count=30)
    with pytest.raises(ValueError, match="count must be at most"):
        features.frozen_features(images, count=4 * 10**6)
    with pytest.raises(ValueError, match="samples must be images"):
        features.frozen_features(data.load("synthetic_rows"))

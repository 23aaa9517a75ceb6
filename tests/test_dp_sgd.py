"""DP-SGD: gradients against Opacus, clipping, noise, sampling, masks and the accountant's figures."""

from __future__ import annotations

import math
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from torch import nn

from nettrim.privacy import accountant as spent_by
from nettrim.privacy import dp_sgd as dp
from nettrim.studies import models

BOTH, CLIPPED, NOISY, NEITHER = (
    dp.Mechanism(1.0, 0.7, clipped, noisy)
    for clipped, noisy in ((True, True), (True, False), (False, True), (False, False))
)


def group_norm_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def samples(shape: tuple[int, ...], classes: int, seed: int = 1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random), torch.randint(0, classes, shape[:1], generator=random)


def norm_of(gradients) -> float:
    return float(torch.sqrt(sum(g.double().square().sum() for g in gradients.values())))


# gradients


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("build, shape", [(models.lenet5, (9, 1, 28, 28)), (group_norm_net, (9, 3, 12, 12))])
def test_gradients_are_those_of_opacus(build, shape):
    torch.manual_seed(0)
    model = build()
    x, y = samples(shape, 10)
    found = dp.per_example_gradients(model, x, y)
    theirs = GradSampleModule(model, loss_reduction="sum")
    nn.functional.cross_entropy(theirs(x), y, reduction="sum").backward()
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        assert found[name].shape == (9, *p.shape)
        torch.testing.assert_close(found[name], p.grad_sample, atol=1e-6, rtol=1e-5)


def test_gradients_sum_to_that_of_the_batch():
    model = small()
    x, y = samples((17, 6), 3)
    for micro in (1, 4, 100):
        made = dp.gradient_sum(model, x, y, NEITHER, micro=micro)
        slow = dp.gradient_sum(model, x, y, dp.Mechanism(1e6, 1.0, True, False), micro=micro)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(made[name], p.grad)
            torch.testing.assert_close(slow[name], p.grad)


def test_fixed_parameters_are_left_alone():
    model = small()
    model[0].weight.requires_grad_(False)
    x, y = samples((4, 6), 3)
    assert "0.weight" not in dp.per_example_gradients(model, x, y)
    before = model[0].weight.clone()
    batches = dp.PoissonBatches(x.numpy(), y.numpy(), 2)
    dp.dp_sgd(model, batches, 2, 0.1, BOTH)
    assert torch.equal(before, model[0].weight)


def test_batch_norms_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match=r"1\.0 \(BatchNorm1d\).*group norms"):
        dp.per_example_gradients(model, *samples((3, 4), 4))
    with pytest.raises(ValueError, match="batch norms"):
        dp.gradient_sum(model, *samples((3, 4), 4), NEITHER)


# clipping


@given(scale=st.floats(-20, 12), C=st.floats(1e-3, 1e3), seed=st.integers(0, 1000), rows=st.integers(1, 300))
@example(scale=0.0, C=1.0, seed=0, rows=300)
@example(scale=12.0, C=1e-3, seed=1, rows=300)
@example(scale=-20.0, C=1.0, seed=2, rows=3)
def test_clipped_norms_are_at_most_C(scale, C, seed, rows):
    random = torch.Generator().manual_seed(seed)
    made = {
        "a": torch.randn(4, rows, 20, generator=random) * 10.0**scale,
        "b": torch.ones(4, rows) * 10.0**scale,
    }
    norms = dp.example_norms(made)
    exact = torch.sqrt(sum(g.double().flatten(1).square().sum(1) for g in made.values()))
    torch.testing.assert_close(norms, exact, rtol=3e-6, atol=0)
    factors = dp.clip_factors(norms, C)
    for k in range(4):
        clipped = {name: g[k] * factors[k].to(g.dtype) for name, g in made.items()}
        assert norm_of(clipped) <= C
        if exact[k] <= 0.999 * C:
            assert factors[k] == 1
        else:
            assert norm_of(clipped) >= 0.999 * C


def test_a_gradient_of_zero_stays():
    made = {"a": torch.zeros(2, 3)}
    assert dp.clip_factors(dp.example_norms(made), 1.0).tolist() == [1, 1]


def test_the_sum_is_of_clipped_gradients():
    model = small()
    x, y = samples((10, 6), 3)
    one = dp.per_example_gradients(model, x, y)
    factors = dp.clip_factors(dp.example_norms(one), 0.3)
    assert (factors < 1).any()
    for micro in (3, 10):
        made = dp.gradient_sum(model, x, y, dp.Mechanism(0.3, 1.0), micro=micro)
        for name, g in one.items():
            wanted = torch.einsum("b,b...->...", factors.float(), g)
            torch.testing.assert_close(made[name], wanted)
    assert norm_of(dp.gradient_sum(model, x, y, dp.Mechanism(0.3, 1.0))) <= 10 * 0.3


# noise


def test_the_noise_has_standard_deviation_sigma_C():
    """Not C sigma^2, nor its root: C = 3, sigma = 0.5 tells them apart."""
    mechanism = dp.Mechanism(3.0, 0.5)
    random = dp.seeded(0, "noise")
    total = {"w": torch.full((40, 50), 7.0)}
    draws = torch.stack([dp.noisy_mean(total, mechanism, 10, random)["w"] for _ in range(200)]).double()
    values = (10 * draws - 7).flatten()
    # standard errors: of the mean 1.5 / sqrt(n), of the deviation 1.5 / sqrt(2 n), n = 400000
    assert abs(values.mean()) < 5 * 1.5 / math.sqrt(len(values))
    assert abs(values.std() - 1.5) < 5 * 1.5 / math.sqrt(2 * len(values))
    # independent from draw to draw
    centred = (10 * draws - 7).flatten(1)
    assert abs((centred[:-1] * centred[1:]).mean()) < 5 * 1.5**2 / math.sqrt(len(values))


def test_four_modes():
    model = small()
    x, y = samples((8, 6), 3)
    names = {"SGD": NEITHER, "clipped SGD": CLIPPED, "noisy SGD": NOISY, "DP-SGD": BOTH}
    assert {name: mechanism.name for name, mechanism in names.items()} == {name: name for name in names}
    sums = {name: dp.gradient_sum(model, x, y, mechanism) for name, mechanism in names.items()}
    for name in sums["SGD"]:
        assert torch.equal(sums["SGD"][name], sums["noisy SGD"][name])
        assert torch.equal(sums["clipped SGD"][name], sums["DP-SGD"][name])
        for mode, mechanism in names.items():
            made = dp.noisy_mean(sums[mode], mechanism, 8, dp.seeded(0, "noise"))[name]
            assert torch.equal(made, sums[mode][name] / 8) == (not mechanism.noisy)
    assert [mechanism.deviation for mechanism in names.values()] == [0, 0, 0.7, 0.7]


# sampling


def test_poisson_batches_are_binomial():
    from scipy.stats import binom, chisquare

    count, expected = 400, 20
    batches = dp.PoissonBatches(np.arange(count, dtype=np.float32)[:, None], np.arange(count), expected, 3)
    assert batches.rate == 0.05 and len(batches) == 20
    drawn = [y.numpy() for _ in range(100) for _, y in batches]
    sizes = np.array([len(rows) for rows in drawn])
    edges = np.array([-1, 14, 16, 18, 20, 22, 24, 26, count])
    wanted = np.diff(binom.cdf(edges, count, 0.05)) * len(sizes)
    observed, _ = np.histogram(sizes, edges + 0.5)
    assert chisquare(observed, wanted).pvalue > 1e-3
    # every sample as often as any other
    times = np.bincount(np.concatenate(drawn), minlength=count)
    assert chisquare(times).statistic < count + 5 * math.sqrt(2 * count)


def test_batches_repeat_and_may_be_empty():
    x, y = np.arange(6, dtype=np.float32)[:, None], np.arange(6)
    first, second, other = (dp.PoissonBatches(x, y, 1, seed) for seed in (0, 0, 1))
    drawn = [[labels.tolist() for _ in range(9) for _, labels in batches] for batches in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2] and [] in drawn[0]
    model = nn.Linear(1, 6)
    made = dp.gradient_sum(model, torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), BOTH)
    assert norm_of(made) == 0
    with pytest.raises(ValueError, match="expected must be between 1 and the 6 samples; got 7"):
        dp.PoissonBatches(x, y, 7)


def test_streams_of_a_seed_are_apart():
    drawn = [torch.rand(1000, generator=dp.seeded(seed, s)) for seed, s in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))]
    assert torch.equal(drawn[0], drawn[1])
    for other in drawn[2:]:
        assert abs(np.corrcoef(drawn[0], other)[0, 1]) < 0.15


# masks


def masks_of(model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.random(tuple(p.shape)) < 0.4 for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("mechanism", [BOTH, CLIPPED, NOISY, NEITHER], ids=lambda m: m.name)
def test_pruned_weights_never_move(mechanism):
    model, masks = small(), masks_of(small())
    x, y = samples((60, 6), 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = dp.dp_sgd(model, dp.PoissonBatches(x.numpy(), y.numpy(), 10), 3, 0.5, mechanism, masks)
    assert steps == 18 and not model.training
    for name, p in model.named_parameters():
        if name in masks:
            kept = torch.from_numpy(masks[name])
            assert (p[~kept] == 0).all() and not torch.equal(p[kept], before[name][kept])
        else:
            assert not torch.equal(p, before[name])


def test_the_norm_that_is_clipped_is_that_of_the_kept_part():
    model, masks = small(), masks_of(small())
    x, y = samples((1, 6), 3)
    whole = dp.per_example_gradients(model, x, y)
    left = {name: g * torch.from_numpy(masks[name]) if name in masks else g for name, g in whole.items()}
    norm, dense = float(dp.example_norms(left)), float(dp.example_norms(whole))
    assert norm < 0.95 * dense
    # between the two norms, only the dense one would be clipped
    C = (norm + dense) / 2
    made = dp.gradient_sum(model, x, y, dp.Mechanism(C), masks)
    assert norm_of(made) == pytest.approx(norm, rel=1e-6)
    made = dp.gradient_sum(model, x, y, dp.Mechanism(norm / 2), masks)
    assert norm_of(made) == pytest.approx(norm / 2, rel=1e-4)


def test_noise_is_zero_where_weights_are_pruned():
    model, masks = small(), masks_of(small())
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    made = dp.noisy_mean(total, BOTH, 4, dp.seeded(0, "noise"), masks)
    for name, g in made.items():
        kept = torch.from_numpy(masks[name]) if name in masks else torch.ones_like(g, dtype=torch.bool)
        assert (g[~kept] == 0).all() and (g[kept] != 0).all()


def test_masks_are_checked():
    model = small()
    x, y = samples((4, 6), 3)
    with pytest.raises(ValueError, match="masks must be for parameters, 0.weight"):
        dp.gradient_sum(model, x, y, BOTH, {"nothing": np.ones(3, bool)})
    with pytest.raises(ValueError, match=r"mask of 0.weight must be bool of shape \(5, 6\); got float64"):
        dp.gradient_sum(model, x, y, BOTH, {"0.weight": np.ones((5, 6))})
    with pytest.raises(ValueError, match=r"of shape \(6, 5\)"):
        dp.gradient_sum(model, x, y, BOTH, {"0.weight": np.ones((6, 5), bool)})


# training


def test_training_repeats_and_learns():
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((3, 6))
    y = rng.integers(0, 3, 300)
    x = (centres[y] + rng.standard_normal((300, 6))).astype(np.float32)
    found, told = [], []
    for seed in (0, 0, 1):
        model = small()
        dp.dp_sgd(model, dp.PoissonBatches(x, y, 60), 15, 1.0, BOTH, seed=seed, progress=told.append)
        found.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["0.weight"], found[2]["0.weight"])
    assert told == list(range(1, 16)) * 3
    assert (model(torch.from_numpy(x)).argmax(1).numpy() == y).mean() > 0.8


def test_a_diverging_training_is_told():
    model = small()
    x, y = samples((40, 6), 3)
    with pytest.raises(FloatingPointError, match="epoch 1: try a smaller rate"):
        dp.dp_sgd(model, dp.PoissonBatches(1e20 * x.numpy(), y.numpy(), 10), 2, 1e30, NEITHER)


@pytest.mark.parametrize(
    "values, message", [({"C": 0.0}, "C must be positive"), ({"sigma": -1.0}, "sigma must be finite and at least 0")]
)
def test_mechanisms_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        dp.Mechanism(**values)


def test_arguments_of_training_are_checked():
    x, y = samples((4, 6), 3)
    with pytest.raises(ValueError, match="micro must be at least 1"):
        dp.gradient_sum(small(), x, y, BOTH, micro=0)
    with pytest.raises(ValueError, match="rate must be positive"):
        dp.dp_sgd(small(), dp.PoissonBatches(x.numpy(), y.numpy(), 2), 1, 0.0, BOTH)


# the accountant


@pytest.mark.parametrize(
    "sigma, accountant, low, high",
    [(0.55, "prv", 22, 23), (0.55, "rdp", 24.5, 25.2), (2.4, "prv", 1.3, 1.4), (2.4, "rdp", 1.4, 1.5)],
)
def test_the_accountants_figures(sigma, accountant, low, high):
    """50000 samples, batches of 1024, 30 epochs: the paper has about 7 and 1."""
    steps = 30 * round(50_000 / 1024)
    found = spent_by.epsilon(steps, 1024 / 50_000, sigma, 1e-5, accountant=accountant)
    assert low < found.epsilon < high
    assert (found.sigma, found.delta, found.steps, found.notice) == (sigma, 1e-5, steps, "")


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_one_step_on_everything_is_the_gaussian_mechanism():
    """Its exact delta (Balle and Wang 2018) at the epsilon that the accountant gives."""
    from scipy.stats import norm

    sigma = 1.5
    spent = spent_by.epsilon(1, 1.0, sigma, 1e-5).epsilon
    delta = norm.cdf(0.5 / sigma - spent * sigma) - math.exp(spent) * norm.cdf(-0.5 / sigma - spent * sigma)
    assert 0.9e-5 < delta <= 1e-5


def test_what_the_result_says():
    found = spent_by.epsilon(10, 0.1, 2.0, private_mask=True)
    assert found.notice == "mask learned on private data: not covered by epsilon" == spent_by.MASK_NOTICE
    assert str(found).endswith(found.notice) and "delta = 1e-05 (PRV accountant)" in str(found)
    assert spent_by.MASK_NOTICE not in str(spent_by.epsilon(10, 0.1, 2.0))
    assert spent_by.epsilon(0, 0.1, 2.0).epsilon == 0 and spent_by.epsilon(3, 0.1, 0.0).epsilon == math.inf
    with pytest.raises(FrozenInstanceError):
        found.epsilon = 0.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1, 0.1, 1.0), "steps must be at least 0"),
        ((1, 0.0, 1.0), "rate must be in"),
        ((1, 1.5, 1.0), "rate must be in"),
        ((1, 0.1, -1.0), "sigma must be finite"),
        ((1, 0.1, 1.0, 1.0), "delta must be in"),
        ((1, 0.1, 1.0, 1e-5, False, "gdp"), "accountant must be"),
    ],
)
def test_what_epsilon_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        spent_by.epsilon(*arguments)


def test_opacus_is_named_where_it_is_missing(monkeypatch):
    spent_by._spent.cache_clear()
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ImportError, match="extra privacy"):
        spent_by.epsilon(1, 0.1, 1.0)

"""Bounds on the distance of networks, against what they bound; the laws of the widths, against simulation; masks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim.bounds import closeness as module
from nettrim.bounds import laws
from nettrim.bounds.closeness import closeness, linear_distance, lower_bound, upper_bound
from nettrim.pruners import masks
from nettrim.sparsity import Unstructured


def network(sizes: tuple[int, ...], seed: int = 0, biased: bool = False):
    """Weights, the same with a third of the entries pruned, and biases."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((n, m)) / math.sqrt(n) for n, m in pairwise(sizes)]
    pruned = [np.where(rng.random(W.shape) < 2 / 3, W, 0) for W in weights]
    return weights, pruned, [biased * rng.standard_normal(m) for m in sizes[1:]]


def output(weights, biases, X):
    for k, (W, b) in enumerate(zip(weights, biases, strict=True)):
        X = W.T @ (np.maximum(X, 0) if k else X) + b[:, None]
    return X


def sphere(inputs: int, count: int, seed: int = 5) -> np.ndarray:
    X = np.random.default_rng(seed).standard_normal((inputs, count))
    return X / np.linalg.norm(X, axis=0)


def uniform(d: int, seed: int, K: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-K, K, (d, d)) / math.sqrt(d)


# one layer


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 7), (40, 25), (25, 40), (200, 200)])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_one_layer_is_exact(shape, scale):
    W, V = np.random.default_rng(1).standard_normal((2, *shape)) * scale
    # NumPy's own would overflow on the way
    truth = scale * np.linalg.norm((W - V) / scale, 2)
    assert linear_distance(W, V) == pytest.approx(truth, rel=1e-12)
    if scale == 1:
        found = closeness([W], [V], radius=3.0, starts=1)
        assert found.exact and found.lower <= found.upper
        assert found.lower == pytest.approx(3 * truth, rel=1e-10) and found.upper == pytest.approx(3 * truth, rel=2e-10)
        assert np.linalg.norm((W - V).T @ found.point) == pytest.approx(found.lower, rel=1e-12)
        assert np.linalg.norm(found.point) == pytest.approx(3)


def test_large_matrices_by_lanczos(monkeypatch):
    W, V = np.random.default_rng(2).standard_normal((2, 90, 70))
    for A, B in ((W, V), (W.T.copy(), V.T.copy())):
        monkeypatch.setattr(module, "DENSE", 2048)
        value, left = module._largest_singular(A - B)
        monkeypatch.setattr(module, "DENSE", 10)
        again, same = module._largest_singular(A - B)
        assert again == pytest.approx(value, rel=1e-10) and abs(left @ same) == pytest.approx(1, abs=1e-8)


def test_random_inputs_alone_say_little():
    """The best of very many is far below the supremum: why a lower bound must search."""
    W = uniform(100, 0)
    sampled = np.linalg.norm(W.T @ sphere(100, 20000), axis=0).max()
    assert sampled < 0.75 * linear_distance(W, np.zeros_like(W))


# deep networks


@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 99), st.booleans(), st.floats(0.1, 10))
@example(1, 5, 0, False, 1.0)
@example(3, 12, 1, True, 2.0)
@example(2, 1, 3, True, 0.1)
def test_the_bounds_are_in_order_and_hold(depth, width, seed, biased, radius):
    sizes = (width, *[8] * (depth - 1), 5)
    weights, pruned, biases = network(sizes, seed, biased)
    found = closeness(weights, pruned, biases, radius=radius, starts=8, iterations=60)
    assert 0 <= found.lower <= found.upper
    assert np.linalg.norm(found.point) <= radius * (1 + 1e-12)
    X = radius * sphere(width, 500) * np.random.default_rng(0).random(500) ** (1 / width)
    sampled = np.linalg.norm(output(weights, biases, X) - output(pruned, biases, X), axis=0)
    assert sampled.max() <= found.upper
    attained = output(weights, biases, found.point[:, None]) - output(pruned, biases, found.point[:, None])
    assert np.linalg.norm(attained) == pytest.approx(found.lower, rel=1e-12, abs=1e-300)
    assert found.exact == (depth == 1)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sizes", [(20, 30, 10), (30, 30, 30, 30), (60, 20, 20, 3)])
def test_ascent_beats_many_random_inputs(sizes, biased):
    weights, pruned, biases = network(sizes, 3, biased)
    value, _ = lower_bound(weights, pruned, biases)
    X = sphere(sizes[0], 20000)
    assert value >= 1.05 * np.linalg.norm(output(weights, biases, X) - output(pruned, biases, X), axis=0).max()
    fewer = [lower_bound(weights, pruned, biases, iterations=k)[0] for k in (0, 5, 20, 200)]
    assert fewer == sorted(fewer) and fewer[-1] == value
    assert lower_bound(weights, pruned, biases, seed=0)[0] == value


def test_ascent_finds_the_supremum_of_small_networks():
    """In two dimensions a fine grid of the circle knows it."""
    angles = np.linspace(0, 2 * np.pi, 200001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for seed in range(8):
        weights, pruned, biases = network((2, 15, 15, 4), seed)
        truth = np.linalg.norm(output(weights, biases, circle) - output(pruned, biases, circle), axis=0).max()
        # between the grid's points the value, which may have a kink there, is higher by a spacing's worth
        assert truth * (1 - 1e-9) <= lower_bound(weights, pruned)[0] <= truth * (1 + 2e-5)


def test_gradients_against_differences():
    weights, pruned, biases = network((9, 14, 11, 6), 4, True)
    networks = [list(zip(w, biases, strict=True)) for w in (weights, pruned)]
    X = sphere(9, 5)
    values, gradient = module._distances(*networks, X)
    for i in range(9):
        shift = np.zeros((9, 1))
        shift[i] = 1e-6
        ahead, behind = (module._distances(*networks, X + sign * shift)[0] for sign in (1, -1))
        np.testing.assert_allclose((ahead**2 - behind**2) / 4e-6, gradient[i], rtol=1e-6, atol=1e-7)
    assert (values > 0).all()


def test_without_biases_all_is_homogeneous():
    weights, pruned, _ = network((12, 20, 20, 5), 6)
    one, ten = (closeness(weights, pruned, radius=r) for r in (1.0, 10.0))
    assert ten.lower == pytest.approx(10 * one.lower, rel=1e-9) and ten.upper == pytest.approx(10 * one.upper)
    scaled = closeness([2 * W for W in weights], [2 * V for V in pruned])
    assert scaled.lower == pytest.approx(8 * one.lower, rel=1e-9) and scaled.upper == pytest.approx(8 * one.upper)
    # so that the worst input lies on the sphere
    assert np.linalg.norm(one.point) == pytest.approx(1)


@pytest.mark.parametrize("biased", [False, True])
def test_nothing_pruned_is_no_distance(biased):
    weights, _, biases = network((6, 9, 4), 7, biased)
    found = closeness(weights, weights, biases)
    assert found.lower == found.upper == 0 and found.exact


def test_pruning_everything():
    weights, _, _ = network((6, 9, 4), 8)
    found = closeness(weights, [np.zeros_like(W) for W in weights])
    X = sphere(6, 2000)
    assert np.linalg.norm(output(weights, [np.zeros(9), np.zeros(4)], X), axis=0).max() <= found.lower <= found.upper


def test_changed_biases():
    weights, _, biases = network((6, 9, 4), 9, True)
    moved = [biases[0], biases[1] + 1]
    found = closeness(weights, weights, biases, moved)
    # the last layer's bias is added to every output
    assert found.lower == pytest.approx(2, rel=1e-12) and found.upper == pytest.approx(2, rel=1e-12)
    # a negative bias before a ReLU adds nothing to what may come out
    low = [np.array([-1.0]), np.zeros(1)]
    ones = [np.ones((1, 1))] * 2
    assert upper_bound(ones, [np.ones((1, 1)), np.zeros((1, 1))], low) == pytest.approx(1)


def test_the_smaller_order_is_kept():
    # by hand: one input, norms 2 and 1 of the first layer, 3 and 5 of the second
    weights, pruned = [np.array([[2.0]]), np.array([[3.0]])], [np.array([[1.0]]), np.array([[5.0]])]
    assert upper_bound(weights, pruned) == pytest.approx(min(2 * 2 + 5 * 1, 2 * 1 + 3 * 1))
    assert closeness(weights, pruned).lower == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"weights": []}, "weights must have at least one"),
        ({"weights": np.ones((2, 2))}, "weights must be a list"),
        ({"pruned": [np.ones((3, 4))]}, "pruned must have a matrix for each of the 2"),
        ({"pruned": [np.ones((3, 4)), np.ones((4, 3))]}, r"pruned\[1\] must be of shape"),
        ({"weights": [np.ones((3, 4)), np.ones((5, 2))]}, r"weights\[1\] must have 4 rows"),
        ({"weights": [np.ones((3, 4)), np.ones((4, 2), int)]}, r"weights\[1\] must be an array of a floating"),
        ({"weights": [np.ones((3, 4)), np.ones(4)]}, r"weights\[1\] must be a matrix"),
        ({"weights": [np.ones((3, 4)), np.full((4, 2), np.nan)]}, r"weights\[1\] contains NaN"),
        ({"biases": [np.ones(4)]}, "biases must have a vector for each"),
        ({"biases": [np.ones(4), np.ones(3)]}, r"biases\[1\] must be of shape"),
        ({"pruned_biases": [np.full(4, np.inf), np.ones(2)]}, r"pruned_biases\[0\] contains"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"radius": "1"}, "radius must be a number"),
        ({"starts": -1}, "starts must be at least 0"),
        ({"iterations": 1.5}, "iterations must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
    ],
)
def test_wrong_networks_name_the_argument(change, error):
    good = {"weights": [np.ones((3, 4)), np.ones((4, 2))], "pruned": [np.ones((3, 4)), np.ones((4, 2))]}
    with pytest.raises((TypeError, ValueError), match=error):
        closeness(**(good | change))


# counts and masks


@pytest.mark.parametrize(
    ("D", "alpha", "count"),
    [
        (10**6, 0.5, 1000),
        (10**6, 1 / 3, 10**4),
        (10**6, 2 / 3, 100),
        (10**10, 0.1, 10**9),
        (10**10, 0.3, 10**7),
        (2**30, 0.9, 8),
        (10**6 - 1, 0.5, 999),
        (10**6 + 1, 0.5, 1000),
        (7, 0, 7),
        (7, 1, 1),
        (1, 0.3, 1),
        (100, math.pi / 10, math.floor(100 ** (1 - math.pi / 10))),
    ],
)
def test_counts(D, alpha, count):
    assert laws.pruned_count(D, alpha) == count


@given(st.integers(1, 10**7), st.integers(0, 20))
@example(10**6, 10)
@example(1, 0)
def test_counts_are_floors_and_fall_with_alpha(D, twentieths):
    count = laws.pruned_count(D, twentieths / 20)
    assert count**20 <= D ** (20 - twentieths) < (count + 1) ** 20
    assert count >= laws.pruned_count(D, min(twentieths + 1, 20) / 20)
    assert laws.pruned_fraction(D, twentieths / 20) + laws.kept_fraction(D, twentieths / 20) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0, 0.2, 0.5, 0.9, 1])
def test_masks_have_their_counts(alpha):
    weights = [np.random.default_rng(k).standard_normal(shape) for k, shape in enumerate([(30, 7), (7, 50), (1, 1)])]
    for made in (masks.magnitude_masks(weights, alpha), masks.random_masks(weights, alpha, 3)):
        for W, mask in zip(weights, made, strict=True):
            assert mask.dtype == bool and mask.shape == W.shape
            assert (~mask).sum() == laws.pruned_count(W.size, alpha)
            assert mask.mean() == pytest.approx(laws.kept_fraction(W.size, alpha))
    total = sum(W.size for W in weights)
    for make in (masks.magnitude_masks, masks.random_masks):
        assert sum((~m).sum() for m in make(weights, alpha, per="network")) == laws.pruned_count(total, alpha)


def test_magnitude_masks_keep_the_largest():
    weights = [np.random.default_rng(k).standard_normal((20, 9)) * (1 + 3 * k) for k in range(2)]
    for W, mask in zip(weights, masks.magnitude_masks(weights, 0.2), strict=True):
        # without ties, as the patterns choose
        assert np.array_equal(mask, Unstructured(int(mask.sum())).mask(np.abs(W)))
        assert np.array_equal(mask, masks.magnitude_mask(W, 0.2))
    first, second = masks.magnitude_masks(weights, 0.2, per="network")
    pruned = np.concatenate([np.abs(W)[~m] for W, m in zip(weights, (first, second), strict=True)])
    kept = np.concatenate([np.abs(W)[m] for W, m in zip(weights, (first, second), strict=True)])
    assert pruned.max() <= kept.min() and first.sum() < second.sum()
    # what is kept at one exponent is kept at every larger one
    nested = [masks.magnitude_mask(weights[0], alpha) for alpha in (0.1, 0.3, 0.6)]
    assert all((low <= high).all() for low, high in pairwise(nested))


def test_ties_prune_the_lowest_index_first():
    W = np.array([[1.0, -1, 1, 5], [1, 1, -1, 1]])
    assert np.flatnonzero(~masks.magnitude_mask(W, 0.5)).tolist() == [0, 1]
    ones = [np.ones((1, 3)), np.ones((2, 3))]
    first, second = masks.magnitude_masks(ones, 0.5, per="network")
    assert first.ravel().tolist() == [False] * 3 and second.all()


def test_random_masks_are_fair():
    W = np.ones((6, 6))
    assert np.array_equal(masks.random_mask(W, 0.4, 1), masks.random_mask(W, 0.4, 1))
    assert np.array_equal(masks.random_mask(W, 0.4, 1), masks.random_masks([W], 0.4, 1)[0])
    share = np.mean([~masks.random_mask(W, 0.4, seed) for seed in range(600)], axis=0)
    p = laws.pruned_fraction(36, 0.4)
    assert np.abs(share - p).max() < 5 * math.sqrt(p * (1 - p) / 600)


# the laws


@pytest.mark.parametrize("alpha", [0.1, 0.2])
@pytest.mark.parametrize("kind", ["magnitude", "random"])
def test_the_laws_hold_for_independent_uniform_layers(alpha, kind):
    """Slopes and constants over three widths; the rows of what is pruned have many entries at these exponents."""
    widths, errors = (256, 512, 1024), []
    for d in widths:
        W = uniform(d, d, K=2.0)
        mask = masks.magnitude_mask(W, alpha) if kind == "magnitude" else masks.random_mask(W, alpha, d)
        errors.append(linear_distance(W, np.where(mask, W, 0)))
        law = (laws.magnitude_law if kind == "magnitude" else laws.random_law)(d, alpha, 2.0)
        assert errors[-1] == pytest.approx(law, rel=0.1)
        assert laws.iid_prediction(np.where(mask, 0, W)) == pytest.approx(errors[-1], rel=0.1)
    mean, _ = laws.slope(widths, errors)
    assert mean == pytest.approx(-(3 if kind == "magnitude" else 1) * alpha, abs=0.05)


def test_near_one_half_the_error_is_above_the_law():
    W = uniform(512, 0)
    mask = masks.random_mask(W, 0.45, 0)
    assert linear_distance(W, np.where(mask, W, 0)) > 1.2 * laws.random_law(512, 0.45)


@pytest.mark.parametrize("shape", [(100, 400), (600, 150)])
def test_rectangular_layers(shape):
    rng = np.random.default_rng(0)
    W = rng.uniform(-1, 1, shape) / math.sqrt(max(shape))
    for mask, law in (
        (masks.magnitude_mask(W, 0.15), laws.magnitude_law(shape, 0.15)),
        (masks.random_mask(W, 0.15), laws.random_law(shape, 0.15)),
    ):
        assert linear_distance(W, np.where(mask, W, 0)) == pytest.approx(law, rel=0.1)


def test_the_laws_formulas():
    for d, alpha, K in ((256, 0.2, 1.0), (1000, 0.45, 3.0)):
        assert laws.magnitude_law(d, alpha, K) == pytest.approx(2 * K / math.sqrt(3) * d ** (-3 * alpha), rel=1e-12)
        assert laws.random_law(d, alpha, K) == pytest.approx(2 * K / math.sqrt(3) * d**-alpha, rel=1e-12)
        assert laws.random_law((d, d), alpha, K) == pytest.approx(laws.random_law(d, alpha, K), rel=1e-12)
        assert laws.magnitude_law(d, alpha, K) < laws.random_law(d, alpha, K)


def test_slopes():
    rng = np.random.default_rng(0)
    x = np.repeat([64.0, 128, 256, 512], 3)
    inside = 0
    for _ in range(400):
        mean, half = laws.slope(x, 3 * x**-0.7 * np.exp(0.05 * rng.standard_normal(len(x))))
        inside += abs(mean + 0.7) <= half
    # 95 % of 400, within four standard deviations
    assert abs(inside - 380) < 18
    assert math.isnan(laws.slope([1, 2], [1, 4])[1])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: laws.pruned_count(0, 0.5), "D must be at least 1"),
        (lambda: laws.pruned_count(2.5, 0.5), "D must be a whole number"),
        (lambda: laws.pruned_count(10, 1.5), "alpha must be in"),
        (lambda: laws.pruned_count(10, math.nan), "alpha must be in"),
        (lambda: laws.pruned_count(10, True), "alpha must be a number"),
        (lambda: laws.magnitude_law((3, 0), 0.5), "shape must be at least 1"),
        (lambda: laws.random_law((3, 4, 5), 0.5), "shape must be"),
        (lambda: laws.random_law(3, 0.5, 0), "K must be positive"),
        (lambda: laws.iid_prediction(np.ones(3)), "difference must be a matrix"),
        (lambda: laws.iid_prediction([[1.0]]), "difference must be an array"),
        (lambda: laws.iid_prediction(np.full((2, 2), np.nan)), "difference contains"),
        (lambda: laws.slope([1, 2], [0, 1]), "y must be positive"),
        (lambda: laws.slope([1, 2], [1, 1, 1]), "y must have as many"),
        (lambda: laws.slope([2, 2], [1, 1]), "x must have at least two"),
        (lambda: linear_distance(np.ones(3), np.ones(3)), "W must be a matrix"),
        (lambda: linear_distance(np.ones((3, 2)), np.ones((2, 3))), "W_pruned must be of shape"),
        (lambda: masks.magnitude_mask([[1.0]], 0.5), "W must be a matrix"),
        (lambda: masks.magnitude_mask(np.full((2, 2), np.nan), 0.5), "W contains NaN"),
        (lambda: masks.random_mask(np.ones((2, 2)), -1), "alpha must be in"),
        (lambda: masks.random_masks([], 0.5), "weights must be a list"),
        (lambda: masks.magnitude_masks(np.ones((2, 2)), 0.5), "weights must be a list"),
        (lambda: masks.magnitude_masks([np.ones((2, 2))], 0.5, "row"), "per must be"),
    ],
)
def test_wrong_input_names_the_argument(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call()

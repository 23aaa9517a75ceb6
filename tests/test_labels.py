"""Labels that errors cannot change, errors that travel through layers, last layers, and bounds by exchangeability."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nettrim as nt
from nettrim.bounds.exchangeable import share_interval, tolerance
from nettrim.bounds.importance import spread
from nettrim.bounds.labels import epsilon_for, guaranteed, predicted, required
from nettrim.bounds.last_layer import ball_flips, last_layer, leverages
from nettrim.bounds.propagation import bubble_up, carry
from nettrim.pruners.coresets import deterministic_weights

seeds = st.integers(0, 10_000)
kinds = st.sampled_from(["additive", "multiplicative"])


def logits(seed: int, M: int = 5, P: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((M, P)) * 3


# labels


@given(seeds, kinds)
@example(0, "additive")
@example(0, "multiplicative")
def test_lemma_is_tight(seed, kind):
    # Lemma 4.1: below the limit no error changes a label, at it the worst one makes a tie
    f = logits(seed)
    limits, top, each = required(f, kind), f.argmax(0), np.arange(f.shape[1])
    size = 1 if kind == "additive" else np.abs(f)
    rng = np.random.default_rng(seed)
    for scale in (0.999, 1.001):
        worst = f + scale * limits * size
        worst[top, each] = (f - scale * limits * size)[top, each]
        assert (worst.argmax(0) == top).all() == (scale < 1)
    inside = f + 0.999 * limits * size * rng.uniform(-1, 1, f.shape)
    assert (predicted(inside) == top).all()
    assert (guaranteed(f, 0.999 * limits * size)).all() and not guaranteed(f, 1.001 * limits * size).any()


def test_ties_are_not_guaranteed():
    f = np.array([[1.0, 0.0, 2.0], [1.0, 0.0, -2.0], [0.0, -1.0, -3.0]])
    for kind in ("additive", "multiplicative"):
        assert required(f, kind)[:2].tolist() == [0, 0] and required(f, kind)[2] > 0
    assert guaranteed(f, 0.0).tolist() == [False, False, True]
    assert required(f, np.zeros(f.shape)).tolist() == [0, 0, np.inf]
    # exactly at the limit
    assert not guaranteed(np.array([[2.0], [0.0]]), 1.0).any()
    assert epsilon_for(np.zeros((3, 4)), share=1.0) == 0


@given(seeds, st.floats(0.01, 1), kinds)
@example(0, 0.5, "additive")
@example(1, 1.0, "multiplicative")
def test_epsilon_for_a_share(seed, share, kind):
    f = logits(seed)
    labels = np.where(np.random.default_rng(seed).random(40) < 0.8, f.argmax(0), 0)
    right = f.argmax(0) == labels
    epsilon = epsilon_for(f, labels, share, kind)
    sure = required(f, kind)[right] > epsilon
    assert sure.mean() >= share - 1e-12
    # and no larger error does
    assert (required(f, kind)[right] > np.nextafter(epsilon, np.inf)).mean() < share
    assert epsilon_for(f, None, share, kind) >= 0


@given(seeds)
@example(0)
def test_signed_certificate_needs_no_delta(seed):
    rng = np.random.default_rng(seed)
    W, X = rng.standard_normal((20, 4)), rng.random((20, 30))
    positive, negative = spread(W, X)
    f, epsilon = positive - negative, 0.05
    sure = guaranteed(f, epsilon * (positive + negative))
    np.testing.assert_array_equal(sure, required(f, positive + negative) > epsilon)
    for _ in range(20):
        a, b = (1 + epsilon * rng.choice([-1, 1], f.shape) * 0.999 for _ in range(2))
        assert (predicted(a * positive - b * negative) == predicted(f))[sure].all()
    # with the largest Delta it guarantees no more
    factor = ((positive + negative) / np.abs(f)).max()
    assert not (guaranteed(f, epsilon * factor * np.abs(f)) & ~sure).any()


def test_bad_labels():
    f = logits(0)
    for call, message in (
        (lambda: required(f[:1]), "at least two classes"),
        (lambda: required(f.astype(int)), "logits must be a matrix of a floating dtype"),
        (lambda: required(np.full((2, 2), np.nan)), "NaN"),
        (lambda: required(f, "relative"), "sizes must be an array or one of"),
        (lambda: required(f, f), "sizes must be a non-negative number"),
        (lambda: guaranteed(f, -1.0), "errors must not be negative"),
        (lambda: epsilon_for(f, share=0.0), "share must be in"),
        (lambda: epsilon_for(f, np.zeros(3, int)), "labels must be 40 integers"),
        (lambda: epsilon_for(f, (f.argmax(0) + 1) % 5), "none of the samples"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


# layers


@given(seeds)
@example(0)
def test_errors_of_a_network_stay_below_what_bubbles_up(seed):
    rng = np.random.default_rng(seed)
    sizes = (12, 15, 9, 4)
    dense = [rng.standard_normal((n + 1, m)) for n, m in pairwise(sizes)]
    pruned = [np.where(rng.random(W.shape) < 0.2, 0, W) for W in dense]

    def flow(layers):
        found, x = [], inputs
        for W in layers:
            with_ones = np.vstack([x, np.ones(x.shape[1])])
            found.append((with_ones, W.T @ with_ones))
            x = np.maximum(found[-1][1], 0)
        return found

    inputs = rng.random((12, 25))
    true, left = flow(dense), flow(pruned)
    at_dense = [np.abs((B - A).T @ x) for A, B, (x, _) in zip(dense, pruned, true, strict=True)]
    at_pruned = [np.abs((B - A).T @ x) for A, B, (x, _) in zip(dense, pruned, left, strict=True)]
    for weights, own in ((pruned, at_dense), (dense, at_pruned)):
        for bound, (_, a), (_, b) in zip(bubble_up(weights, own, bias=True), true, left, strict=True):
            assert (np.abs(a - b) <= bound + 1e-9).all()
    # of one layer there is nothing but its own
    np.testing.assert_array_equal(bubble_up(pruned[:1], at_dense[:1], bias=True)[0], at_dense[0])


def test_errors_that_are_the_same_for_all_samples():
    W = [np.array([[1.0, -2.0]]), np.array([[3.0], [-1.0]])]
    np.testing.assert_allclose(bubble_up(W, [np.array([[0.5], [0.25]]), np.float64(0.1)])[1], [[1.85]])
    np.testing.assert_allclose(carry(W[1], np.array([[0.5], [0.25]]), 0.1), [[1.85]])
    with pytest.raises(ValueError, match="own must have a bound for each"):
        bubble_up(W, [np.zeros((2, 1))])
    for own in (-1.0, np.full((1, 1), -1.0)):
        with pytest.raises(ValueError, match="must not be negative"):
            carry(W[1], np.array([[0.5], [0.25]]), own)
    with pytest.raises(ValueError, match="must not be negative"):
        bubble_up(W[:1], [np.full((2, 1), -1.0)])
    with pytest.raises(ValueError, match="error must have a row for each"):
        carry(W[1], np.zeros((3, 1)))


# last layers


@given(seeds, st.floats(0, 4))
@example(0, 1.0)
@example(1, 0.0)
def test_flips_of_a_ball_by_enumeration(seed, radius):
    f = logits(seed, 3, 6)
    two = np.sort(f, axis=0)[-2:]
    costs = (two[1] - two[0]) ** 2 / 2
    most = max(
        k for k in range(7) for some in combinations(range(6), k) if costs[list(some)].sum() <= radius**2 * (1 + 1e-9)
    )
    assert ball_flips(f, radius) == most
    # and they can be had: each of the cheapest moved to a tie
    moved = f.copy()
    for p in np.argsort(costs)[:most]:
        j, k = np.argsort(f[:, p])[::-1][:2]
        moved[[j, k], p] = f[[j, k], p].mean()
    assert np.linalg.norm(moved - f) <= radius * (1 + 1e-6)


def test_last_layer_of_a_solution():
    rng = np.random.default_rng(0)
    X = np.vstack([np.maximum(rng.standard_normal((20, 300)), 0), np.ones(300)])
    Y = rng.standard_normal((21, 5)).T @ X
    solution = nt.solve(X, Y, epsilon=0.1, omega="linear", gap_tol=1e-6, feas_tol=1e-6)
    found = last_layer(X, Y, solution.W, radius=0.1 * np.linalg.norm(Y))
    assert 0 < found.by_ball <= found.by_residuals <= found.unchanged <= found.samples == 300
    assert last_layer(X, Y, solution.W).radius == pytest.approx(found.radius, rel=1e-4)
    exact = last_layer(X, Y, np.linalg.lstsq(X.T, Y.T, rcond=None)[0], radius=0.0)
    assert exact.by_ball == exact.unchanged == 300
    # weights outside of the ball: their own distance counts
    other = last_layer(X, Y, 0.5 * solution.W, radius=0.0)
    assert other.radius > 0 and other.by_ball <= other.by_residuals <= other.unchanged
    with pytest.raises(ValueError, match="do not fit"):
        last_layer(X, Y[:2], solution.W)
    with pytest.raises(ValueError, match="W contains NaN"):
        last_layer(X, Y, np.nan * solution.W)
    with pytest.raises(ValueError, match="at least two classes"):
        ball_flips(Y[:1], 1.0)


@given(seeds)
@example(0)
def test_leverage_bounds_errors_at_new_inputs(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((6, 30)) * np.array([1, 1, 1, 1, 1, 0])[:, None]
    change = rng.standard_normal((6, 3))
    R = change.T @ X
    new = rng.standard_normal((6, 10)) * np.array([1, 1, 1, 1, 1, 0])[:, None]
    size = leverages(X, new)
    assert (np.abs(change.T @ new) <= np.linalg.norm(R, axis=1)[:, None] * size + 1e-9).all()
    assert (leverages(X, X) <= 1 + 1e-9).all()
    # nothing is known outside of what was seen
    assert np.isinf(leverages(X, np.eye(6)[:, 5:])).all()


# exchangeability


@given(st.integers(1, 60), st.floats(0.02, 0.9))
@example(19, 0.05)
@example(18, 0.05)
def test_tolerance_is_the_order_statistic(n, delta):
    errors = np.random.default_rng(n).random(n)
    bound = tolerance(errors, delta)
    if np.isinf(bound):
        assert n + 1 < 1 / delta * (1 + 1e-9)
    else:
        assert (errors <= bound).sum() >= (n + 1) * (1 - delta) - 1e-9


def test_tolerance_covers_one_more():
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(4000):
        errors = rng.pareto(1.2, 30)
        outside += errors[-1] > tolerance(errors[:-1], 0.1)
    low, high = share_interval(outside, 4000)
    assert low <= 0.1 and 0.05 < high


def test_tolerance_of_a_coreset():
    # weights chosen on some samples, judged on others: nothing has to be assumed
    rng = np.random.default_rng(0)
    W, X = rng.standard_normal((40, 3)), rng.pareto(2.0, (40, 1200))
    made = deterministic_weights(W, X[:, :200], density=0.5)
    errors = np.abs((made.W - W).T @ X[:, 200:]).max(0)
    bound = tolerance(errors[:500], 0.1)
    assert share_interval(int((errors[500:] > bound).sum()), 500)[0] <= 0.1


@pytest.mark.parametrize("successes", [0, 3, 20])
def test_intervals_of_shares(successes):
    from scipy.stats import binom

    low, high = share_interval(successes, 20)
    assert low <= successes / 20 <= high
    if successes:
        assert binom.sf(successes - 1, 20, low) == pytest.approx(0.025)
    if successes < 20:
        assert binom.cdf(successes, 20, high) == pytest.approx(0.025)
    with pytest.raises(ValueError, match="successes must be"):
        share_interval(21, 20)

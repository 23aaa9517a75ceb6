"""Coresets: what the algorithms promise of weights and counts, and the theorems' rates of failure, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim.bounds import coresets as bounds
from nettrim.bounds.exchangeable import share_interval
from nettrim.bounds.importance import check_assumption, importances, missed, samples_needed, spread, totals
from nettrim.pruners.coresets import deterministic_weights, random_weights
from nettrim.pruners.neuron_coreset import input_radius, neuron_importances, neurons


def layer(N: int = 30, M: int = 4, P: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((N, M)) * rng.random((N, 1)) ** 2
    X = rng.random((N, P))
    X[-1] = 1
    return W, X


seeds = st.integers(0, 10_000)

# importance


def test_importances_by_the_formula():
    W, X = layer(5, 3, 7)
    found = importances(W, X)
    for m in range(3):
        for n in range(5):
            same = np.sign(W[:, m]) == np.sign(W[n, m])
            shares = [abs(W[n, m]) * x[n] / (np.abs(W[:, m]) * same * x).sum() for x in X.T]
            assert found[n, m] == pytest.approx(max(shares), rel=1e-12)


@given(seeds)
@example(0)
def test_importances_do_not_depend_on_scales(seed):
    W, X = layer(12, 3, 9, seed)
    rng = np.random.default_rng(seed)
    scaled = importances(W * rng.uniform(0.1, 10, 3), X * rng.uniform(0.1, 10, 9))
    np.testing.assert_allclose(scaled, importances(W, X), rtol=1e-9)
    total = totals(W, importances(W, X))
    # at every sample the shares of a half that is not empty sum to one
    assert (total[[(W > 0).any(0), (W < 0).any(0)]] >= 1 - 1e-12).all()


def test_dead_inputs_and_empty_halves():
    W, X = np.abs(layer()[0]), layer()[1]
    X[3] = 0
    found = importances(W, X)
    assert not found[3].any() and not totals(W, found)[1].any()
    made = random_weights(W, X, epsilon=0.5)
    assert not made.epsilon[1].any() and not made.draws[1].any() and not made.W[3].any()
    assert not importances(np.zeros((4, 2)), np.ones((4, 3))).any()


def test_assumption_by_the_formula():
    W, X = layer(6, 2, 50)
    found = check_assumption(W, X, ratio=2, exponent=3)
    for m in range(2):
        for n in range(6):
            same = np.sign(W[:, m]) == np.sign(W[n, m])
            g = np.abs(W[n, m]) * X[n] / (np.abs(W[:, m])[:, None] * same[:, None] * X).sum(0)
            assert found.violated[n, m] == ((g <= g.max() / 2).mean() > np.exp(-1 / 3))
    assert found.weights.sum() == 12 and found.broken.sum() == found.violated.sum()
    assert found.share == found.violated.mean() and found.holds == (found.share == 0)
    # of an input that is never there, there is nothing to assume
    X[2] = 0
    assert not check_assumption(W, X).violated[2].any()


def test_assumption_holds_for_flat_and_fails_for_sparse_inputs():
    rng = np.random.default_rng(0)
    W = rng.uniform(0.9, 1.1, (200, 2)) * np.where(np.arange(200)[:, None] % 2, 1, -1)
    flat, sparse = rng.uniform(0, 1, (200, 400)), rng.pareto(1.5, (200, 400))
    assert check_assumption(W, flat).share < 0.01 < 0.95 < check_assumption(W, sparse).share


# formulas


@given(st.floats(1e-4, 0.99), st.floats(1, 200), st.floats(0.01, 0.9))
@example(0.1, 10.0, 0.5)
@example(0.99, 1.0, 0.9)
def test_errors_and_draws_are_inverse(epsilon, total, delta):
    draws = float(bounds.random_draws(epsilon, total, delta))
    assert bounds.random_error(draws, total, delta) <= epsilon * (1 + 1e-9)
    assert draws == 1 or bounds.random_error(draws - 1, total, delta) > epsilon
    s = bounds.hoeffding_draws(epsilon, total, 10, delta)
    assert bounds.hoeffding_error(s, total, 10, delta) <= epsilon * (1 + 1e-9)
    assert s == 1 or bounds.hoeffding_error(s - 1, total, 10, delta) > epsilon
    p = bounds.neuron_draws(epsilon, total, 10, delta)
    assert bounds.neuron_error(p, total, 10, delta) <= epsilon * (1 + 1e-9)
    assert p == 1 or bounds.neuron_error(p - 1, total, 10, delta) > epsilon


@given(st.floats(1, 1e6), st.floats(1.0, 100))
@example(10.0, 5.0)
def test_more_draws_err_less(draws, total):
    assert bounds.random_error(2 * draws, total, 0.1) < bounds.random_error(draws, total, 0.1)
    assert bounds.random_error(draws, total, 0.01) > bounds.random_error(draws, total, 0.1)
    assert bounds.random_error(draws, 0.0, 0.1) == 0


def test_printed_counts():
    # deterministic: 3K of the paper against K; the sample size of Theorem A.1 for the paper's last layer
    assert bounds.deterministic_error(0.1, 2, bounds.PRINTED_FACTOR) == pytest.approx(0.6)
    assert bounds.deterministic_error(0.1, 2) == pytest.approx(0.2)
    assert samples_needed(1010, 0.5) == int(np.ceil(3 * np.log(4040)))
    assert bounds.union(0.01, 20) == pytest.approx(0.2) and bounds.union(0.5, 20) == 1


@given(st.integers(1, 60), seeds)
@example(1, 0)
@example(60, 1)
def test_expected_unique(draws, seed):
    q = np.random.default_rng(seed).dirichlet(np.full(8, 0.3))
    assert bounds.expected_unique(draws, q) == pytest.approx((1 - (1 - q) ** draws).sum())
    assert bounds.expected_unique(0, q) == 0 and bounds.expected_unique(5, np.array([1.0, 0.0])) == 1


# weights


@given(seeds, st.floats(0.2, 0.9))
@example(3, 0.5)
def test_no_more_weights_than_draws(seed, epsilon):
    W, X = layer(seed=seed % 7)
    made = random_weights(W, X, epsilon=epsilon, seed=seed)
    for sign, draws in zip((1, -1), made.draws, strict=True):
        assert (np.count_nonzero(np.where(sign * W > 0, made.W, 0), axis=0) <= draws).all()
    # signs stay, and what is pruned or has no importance is zero
    assert (np.sign(made.W) == np.where(made.W != 0, np.sign(W), 0)).all()
    assert (made.epsilon <= epsilon * (1 + 1e-9)).all()


def test_sampled_weights_are_unbiased():
    W, X = layer(12, 3)
    X = X[:, :40]
    repeats, rng = 2000, np.random.default_rng(1)
    made = [random_weights(W, X, epsilon=0.9, samples=40, seed=rng) for _ in range(repeats)]
    mean = np.mean([one.W for one in made], axis=0)
    total, s = totals(W, made[0].importance), made[0].importance
    for k, sign in enumerate((1, -1)):
        q = np.where(sign * W > 0, s / np.where(total[k] > 0, total[k], 1), 1)
        deviation = np.abs(W) * np.sqrt((1 - q) / (made[0].draws[k].clip(1) * q) / repeats)
        mine = sign * W > 0
        assert (np.abs(mean - W)[mine] <= 5 * deviation[mine]).all()


def test_stopping_at_a_count_is_biased():
    # two weights drawn with .9 and .1 until both have come (paper 001, sparsity-first): expected weights .88 and 2.08
    m = np.arange(2, 2000)
    first, second = 0.9 ** (m - 1) * 0.1, 0.1 ** (m - 1) * 0.9
    assert (first + second).sum() == pytest.approx(1)
    expected = [
        (first * (m - 1) / (m * 0.9) + second / (m * 0.9)).sum(),
        (first / (m * 0.1) + second * (m - 1) / (m * 0.1)).sum(),
    ]
    assert expected == pytest.approx([0.88, 2.08], abs=0.01)


@pytest.mark.parametrize("delta", [0.3, 0.1])
def test_rate_of_failure_of_sampled_weights(delta):
    # flat inputs, for which the assumption holds; new importances, weights and input every time
    rng = np.random.default_rng(0)
    W = rng.uniform(0.5, 1.5, (60, 1))
    failures = trials = 0
    for _ in range(1500):
        X = rng.random((60, samples_needed(60, delta)))
        made = random_weights(W, X, epsilon=0.7, delta=delta, seed=rng)
        x = rng.random(60)
        z = float(W[:, 0] @ x)
        failures += abs(float(made.W[:, 0] @ x) - z) >= 0.7 * z
        trials += 1
    assert share_interval(failures, trials)[1] <= delta


def test_rate_of_failure_of_deterministic_weights():
    rng = np.random.default_rng(0)
    W = rng.uniform(0, 1, (60, 1)) ** 2
    delta, failures, looser, trials = 0.1, 0, 0, 400
    for _ in range(trials):
        X = rng.random((60, samples_needed(60, delta)))
        made = deterministic_weights(W, X, nnz=40, delta=delta, seed=rng)
        x = rng.random(60)
        z, error = float(W[:, 0] @ x), abs(float((W - made.W)[:, 0] @ x))
        failures += error >= made.epsilon[0, 0] * z
        looser += error >= made.epsilon[0, 0] / 6 * z
    assert share_interval(failures, trials)[1] <= delta
    # the rates are not trivially zero
    assert looser > 0


def test_deterministic_weights_leave_in_order():
    W, X = layer()
    epsilon = 0.6
    made = deterministic_weights(W, X, epsilon=epsilon, samples=200)
    kept = made.W != 0
    assert (made.W[kept] == W[kept]).all() and (made.epsilon <= epsilon * (1 + 1e-9)).all()
    for sign in (1, -1):
        for m in range(W.shape[1]):
            mine = sign * W[:, m] > 0
            s, left = made.importance[mine, m], kept[mine, m]
            assert not left.any() or left.all() or s[left].min() >= s[~left].max()
            # one more would be too many
            if left.any():
                assert 2 * (s[~left].sum() + s[left].min()) > epsilon
    printed = deterministic_weights(W, X, epsilon=epsilon, samples=200, factor=bounds.PRINTED_FACTOR)
    assert printed.nnz > made.nnz


@given(seeds, st.floats(0, 1))
@example(0, 0.3)
@example(1, 0.0)
@example(2, 1.0)
def test_deterministic_counts_are_exact_and_balanced(seed, density):
    W, X = layer(15, 3, 60, seed % 5)
    made = deterministic_weights(W, X, density=density, samples=60, seed=seed)
    assert made.nnz == round(density * W.size)
    more = deterministic_weights(W, X, epsilon=max(made.epsilon.max(), 1e-12), samples=60)
    # no other choice of as many has a smaller largest error
    assert more.nnz <= made.nnz


def test_ties_are_broken():
    W, X = np.ones((8, 2)), np.ones((8, 30))
    made = deterministic_weights(W, X, nnz=6, samples=30)
    assert made.nnz == 6
    np.testing.assert_array_equal(made.W, deterministic_weights(W, X, nnz=6, samples=30).W)


@pytest.mark.parametrize("count", [20, 60, 90])
def test_counts_are_met_on_average(count):
    W, X = layer()
    found = [random_weights(W, X, nnz=count, samples=200, seed=k).nnz for k in range(60)]
    assert abs(np.mean(found) - count) < 1.2


def test_counts_out_of_reach_say_which_are_not():
    W, X = layer()
    X[:10] = 0
    reachable = int((W[10:] != 0).sum())
    with pytest.raises(ValueError, match=f"nnz must be between 8.* and the {reachable} weights with an importance"):
        random_weights(W, X, nnz=reachable + 1, samples=200)
    with pytest.raises(ValueError, match="no number of samples leaves 7"):
        random_weights(W, X, nnz=7, samples=200)
    with pytest.raises(ValueError, match="nnz must not exceed the 80 non-zero weights"):
        deterministic_weights(np.where(np.arange(30)[:, None] < 10, 0, W), X, nnz=81, samples=200)


def test_bounds_of_outputs():
    W, X = layer()
    made = deterministic_weights(W, X, density=0.5, samples=200)
    positive, negative = spread(W, X)
    np.testing.assert_allclose(positive - negative, W.T @ X, atol=1e-12)
    # importances of these very samples: the bound with K = 1 holds on all of them
    assert (np.abs((made.W - W).T @ X) <= made.errors(W, X) / 2 + 1e-12).all()
    assert made.density == pytest.approx(0.5)
    with pytest.raises(ValueError, match="dense must be of shape"):
        made.errors(W[:, :2], X)


def test_failure_of_a_layer():
    W, X = layer(P=400)
    needed = samples_needed(W.size, 0.1)
    # one event for all neurons and all inputs: half of delta with the samples that the theorem asks for
    for samples, most in ((needed, 0.05), (2 * needed, 0.05 * 0.05)):
        made = deterministic_weights(W, X, density=0.5, delta=0.1, samples=samples)
        assert 0 < made.failure == missed(W.size, samples) <= most
    assert deterministic_weights(W, X, density=0.5, delta=0.1, samples=1).failure == 1
    random = random_weights(W, X, epsilon=0.5, delta=0.1, samples=needed)
    assert random.failure == pytest.approx(random.missed + 0.05 * np.count_nonzero(random.draws))


def test_single_precision_stays():
    W, X = (a.astype(np.float32) for a in layer())
    for make in (random_weights, deterministic_weights):
        made = make(W, X, density=0.4)
        assert made.W.dtype == np.float32 and made.epsilon.dtype == np.float64


@pytest.mark.parametrize("make", [random_weights, deterministic_weights])
def test_bad_weights_and_counts(make):
    W, X = layer()
    for wrong, message in (
        ({"X": -X}, "X must be non-negative"),
        ({"X": X[:5]}, "a row for each input"),
        ({"X": X[:, :3]}, "X must have .* samples"),
        ({"W": W.astype(int)}, "W must be a matrix of a floating dtype"),
        ({"W": np.full_like(W, np.nan)}, "W contains NaN"),
        ({"delta": 1.0}, "delta must be in"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": None}, "give one of epsilon, nnz and density"),
        ({"nnz": 5}, "give one of epsilon, nnz and density"),
        ({"epsilon": None, "density": 1.5}, "density must be in"),
        ({"samples": 1000}, "samples must be between"),
        ({"ratio": 0.0}, "ratio must be positive"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            make(**({"W": W, "X": X, "epsilon": 0.5} | wrong))


def test_many_samples_of_a_large_layer():
    rng = np.random.default_rng(0)
    W, X = rng.standard_normal((1000, 10)), rng.random((1000, 60))
    total = totals(W, importances(W, X)).sum()
    # an error for which a million samples are needed
    epsilon = np.sqrt(2 * total * np.log(8) * 2 / 1e6)
    made = random_weights(W, X, epsilon=epsilon)
    assert made.draws.sum() > 900_000


# neurons


def hidden(N: int = 12, H: int = 20, k: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, H)), rng.standard_normal((H, k)) * rng.random((H, 1)) ** 2


def test_neurons_are_unbiased_and_no_more_than_draws():
    W_in, W_out = hidden()
    rng = np.random.default_rng(0)
    made = [neurons(W_in, W_out, 1.0, count=10, seed=rng) for _ in range(4000)]
    draws, q = made[0].draws, made[0].importance / made[0].total
    deviation = np.abs(W_out) * np.sqrt((1 - q) / (draws * q) / 4000)[:, None]
    assert (np.abs(np.mean([one.W_out for one in made], axis=0) - W_out) <= 5 * deviation).all()
    assert all(one.kept.sum() <= draws for one in made)
    assert np.mean([one.kept.sum() for one in made]) == pytest.approx(10, abs=0.6)


def test_rate_of_failure_of_neurons():
    W_in, W_out = hidden()
    rng = np.random.default_rng(0)
    delta, epsilon, failures, trials = 0.2, 3.0, 0, 600
    for _ in range(trials):
        made = neurons(W_in, W_out, 1.0, epsilon=epsilon, delta=delta, seed=rng)
        x = rng.standard_normal(12)
        h = np.maximum(W_in.T @ (x / np.linalg.norm(x)), 0)
        failures += np.abs((made.W_out - W_out).T @ h).max() >= epsilon
    assert share_interval(failures, trials)[1] <= delta


def test_theorem_a4_as_printed_is_not_invariant_to_scale():
    # outputs and error a million times as large: the same problem, for which the formula asks a single sample
    W_in, W_out = hidden()
    epsilon, scale, delta = 2.0, 1e6, 0.2
    small = neurons(W_in, W_out, 1.0, epsilon=epsilon, delta=delta, formula="printed")
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(200):
        made = neurons(W_in * scale, W_out, 1.0, epsilon=epsilon * scale, delta=delta, formula="printed", seed=rng)
        x = rng.standard_normal(12)
        h = np.maximum(W_in.T @ (x / np.linalg.norm(x)), 0) * scale
        failures += np.abs((made.W_out - W_out).T @ h).max() > epsilon * scale
    assert made.draws == 1 < small.draws
    assert share_interval(failures, 200)[0] > delta
    # the count that is proven does not depend on the scale
    proven = [neurons(W_in * a, W_out, 1.0, epsilon=epsilon * a, delta=delta).draws for a in (1, 2.0**20)]
    assert proven[0] == proven[1]


def test_total_importance_scales_but_outputs_only_with_the_biases():
    # Lemma C.1
    W_in, W_out = hidden()
    rng = np.random.default_rng(2)
    b_in, b_out, X = rng.standard_normal(20), rng.standard_normal(3), rng.standard_normal((12, 50))
    alpha = 7.0
    s = neuron_importances(W_in, W_out, 2.0).sum()
    assert neuron_importances(alpha * W_in, W_out, 2.0).sum() == pytest.approx(alpha * s)

    def outputs(W, b, c):
        return W_out.T @ np.maximum(W.T @ X + b[:, None], 0) + c[:, None]

    dense = outputs(W_in, b_in, b_out)
    np.testing.assert_allclose(outputs(alpha * W_in, alpha * b_in, alpha * b_out), alpha * dense)
    assert not np.allclose(outputs(alpha * W_in, b_in, b_out), alpha * dense)
    assert (outputs(alpha * W_in, b_in, b_out).argmax(0) != dense.argmax(0)).any()


@given(st.floats(0.3, 50), st.integers(2, 400), st.floats(0.05, 0.9))
@example(100.0 / 3, 300, 0.5)
@example(1.2, 50, 0.5)
def test_samples_fall_with_scale_on_one_side_of_a_condition(total, inputs, delta):
    # Corollary C.2 holds where log(alpha t) + log(1 / delta) / d > 1, and turns around below it
    condition = np.log(total) + np.log(1 / delta) / inputs

    def draws(alpha):
        return alpha * total * (inputs * np.log(alpha * total) - np.log(delta)) / alpha**2

    if condition > 1:
        assert draws(1.01) < draws(1)
        assert bounds.neuron_draws(1.5e-3, 1.5 * total, inputs, delta) <= bounds.neuron_draws(
            1e-3, total, inputs, delta
        )
    elif condition < 1 - 0.02:
        assert draws(1.01) > draws(1)


def test_radius_and_kept():
    X = np.array([[3.0, 0.0], [4.0, 1.0]])
    assert input_radius(X) == 5 and input_radius(X, bias=True) == pytest.approx(np.sqrt(26))
    W_in, W_out = hidden()
    W_out[4] = 0
    made = neurons(W_in, W_out, 1.0, epsilon=0.5)
    assert not made.kept[4] and made.importance[4] == 0 and made.kept.sum() <= 19
    with pytest.raises(ValueError, match="between 1 and the 19 neurons with an importance, of 20"):
        neurons(W_in, W_out, 1.0, count=20)


def test_bad_neurons():
    W_in, W_out = hidden()
    for wrong, message in (
        ({"epsilon": None}, "give one of epsilon and count"),
        ({"count": 3}, "give one of epsilon and count"),
        ({"epsilon": None, "count": 2.5}, "count must be a whole number"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"formula": "chernoff"}, "formula must be one of"),
        ({"constant": -1.0}, "constant must be positive"),
        ({"epsilon": 1e-9}, "needs .* samples; at most"),
        ({"W_out": W_out[:3]}, "a column for each row of W_out"),
        ({"W_in": W_in.astype(int)}, "W_in must be a matrix of a floating dtype"),
        ({"W_in": 0 * W_in}, "no neuron has an importance"),
        ({"W_in": 1e-9 * W_in, "formula": "printed"}, "total must be so large"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            neurons(**({"W_in": W_in, "W_out": W_out, "radius": 1.0, "epsilon": 0.5} | wrong))

"""Working sets: the kernels against their definitions, the same answer from any start, and the ways out."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
from helpers import solve_tightly
from hypothesis import example, given
from hypothesis import strategies as st
from instances import KINDS, infeasible_with_ray, known_optimum, random_problem
from nettrim.kernels import active_set, passes, path, systems

import nettrim as nt
from nettrim import coarse
from nettrim import run as run_module
from nettrim.coarse import COARSE, FINE, Start, coarse_start, exact_work, iteration_work, iterations, relative_radius
from nettrim.working_set import SHIFTS, WorkingSet


def unlimited() -> np.ndarray:
    """Nothing spent of any amount."""
    return np.array([0.0, np.inf])


def neuron(seed: int, n: int, k: int, samples: int, bounds: str = "zero"):
    """G, b, y.y, C, A, v of a random neuron; `samples` < n makes G singular."""
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((n, samples)), rng.standard_normal(samples)
    A = rng.standard_normal((n, k))
    v0 = 0.1 * rng.standard_normal(n) @ A + 0.05 * rng.exponential(size=k)
    v = {"zero": np.zeros(k), "positive": rng.exponential(size=k), "negative": v0}[bounds]
    return X @ X.T, X @ y, float(y @ y), rng.uniform(0.5, 2, n), A, v


def optimality(G, b, C, A, v, mu, w, eta):
    """Largest violation of the conditions of mu C|w| + w.Gw/2 - b.w, A^T w <= v, relative to mu or to the outputs."""
    g = G @ w - b + A @ eta
    stationary = np.where(w != 0, np.abs(g + mu * C * np.sign(w)), np.maximum(np.abs(g) - mu * C, 0)) / mu
    slack = v - w @ A
    size = max(np.abs(v).max(initial=0), np.abs(A).max(initial=0) * np.abs(w).max(initial=0), 1e-300)
    return max(
        stationary.max(),
        max(-slack.min(initial=0), 0) / size,
        max(-eta.min(initial=0), 0) / mu,
        np.abs(np.minimum(eta / mu, slack / size)).max(initial=0),
    )


def follow(problem, mu, w, eta, feasible=1e-12, shift=1e-9):
    G, b, _, C, A, v = problem
    n, k = A.shape
    size, most = systems.rms_norm(G, A), 50 * (n + k) + 100
    paths = np.zeros((2, n)), np.zeros((2, k))
    kept = np.empty(0, np.int64), np.empty((0, 0))
    total = 0
    for _ in range(3):
        # as the solver does: a path from the end of the last one is short, and mends what that one lost
        arrived, kinks, *kept = path.follow(
            G, b, C, A, v, mu, *paths, w, eta, feasible, size, shift, *kept, most, unlimited()
        )
        total += kinks
    return arrived, total


# kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("old", [0, 3, 70])
def test_products_are_gathered(rng, dtype, old):
    X = rng.standard_normal((90, 1300)).astype(dtype)
    rows, index = rng.permutation(90)[:75], np.flatnonzero(rng.random(1300) < 0.6)
    expected = X[np.ix_(rows, index)].astype(np.float64)
    expected = expected @ expected.T
    G = np.full((75, 75), np.nan)
    G[:old, :old] = expected[:old, :old]
    passes.gather_products(X, index, rows, old, G)
    np.testing.assert_allclose(G, expected, rtol=1e-12, atol=1e-10)


def test_products_of_no_samples_are_zero(rng):
    G = np.full((4, 4), np.nan)
    passes.gather_products(rng.standard_normal((6, 10)), np.zeros(0, int), np.arange(4), 0, G)
    np.testing.assert_array_equal(G, 0)


@pytest.mark.parametrize("constant", [False, True])
def test_a_row_is_judged(rng, constant):
    z, y, inside = rng.standard_normal(200), rng.standard_normal(200), rng.random(200) < 0.4
    v = np.array([0.3]) if constant else rng.standard_normal(200)
    bound = np.broadcast_to(v, 200)
    row = z.copy()
    samples, over, square, excess = passes.judge_row(row, y, inside, v, 0.1)
    expected = np.flatnonzero(~inside & (z - bound > 0.1))
    np.testing.assert_array_equal(samples, expected)
    np.testing.assert_allclose(over, (z - bound)[expected])
    assert square == pytest.approx(((z - y)[inside] ** 2).sum())
    assert excess == pytest.approx((np.maximum(z - bound, 0)[~inside] ** 2).sum())
    np.testing.assert_array_equal(row, np.where(inside, z - y, 0))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(0, 15),
    st.sampled_from([1, 5, 40]),
    st.sampled_from(["positive", "negative"]),
    st.floats(-2, 1),
)
@example(0, 8, 6, 40, "positive", -1.0)
@example(1, 12, 15, 5, "positive", 0.0)  # fewer samples than inputs: G is singular
@example(2, 6, 15, 40, "negative", -1.0)  # w = 0 is not feasible
@example(3, 5, 0, 40, "positive", -1.0)  # no bounds
def test_a_path_ends_at_the_optimum_from_any_start(seed, n, k, samples, bounds, log_mu):
    problem, mu = neuron(seed, n, k, samples, bounds), 10.0**log_mu
    G, b, _, C, A, v = problem
    rng = np.random.default_rng(seed)
    ends = []
    for _ in range(2):
        w = rng.standard_normal(n) * (rng.random(n) < 0.5)
        eta = rng.exponential(size=k) * (rng.random(k) < 0.3)
        arrived, _ = follow(problem, mu, w, eta)
        assert arrived
        ends.append(mu * C @ np.abs(w) + 0.5 * w @ G @ w - b @ w)
        # the shift of the path's system is relative to G
        assert optimality(G, b, C, A, v, mu, w, eta) < 1e-5
    assert ends[0] == pytest.approx(ends[1], rel=1e-6, abs=1e-7 * mu)


@given(st.integers(0, 2**32 - 1), st.floats(-2, 0))
@example(0, -1.0)
@example(1, -2.0)
def test_the_affine_path_is_exact_until_the_sets_change(seed, log_mu):
    problem, mu = neuron(seed, 8, 6, 60, "positive"), 10.0**log_mu
    G, b, yy, C, A, v = problem
    w, eta = np.zeros(8), np.zeros(6)
    path_w, path_eta = np.zeros((2, 8)), np.zeros((2, 6))
    size, kept = systems.rms_norm(G, A), (np.empty(0, np.int64), np.empty((0, 0)))
    _, _, *kept = path.follow(G, b, C, A, v, mu, path_w, path_eta, w, eta, 1e-12, size, 1e-9, *kept, 500, unlimited())
    verified, solved, c, a = active_set.exact(G, b, yy, C, A, v, mu, path_w, path_eta, w, eta, 1e-8, 1e-9, 3)
    assert verified
    assert solved == 0
    assert optimality(G, b, C, A, v, mu, w, eta) < 1e-8
    # the residual's square, for this mu and a nearby one that needs no new system
    near = mu * (1 + 1e-7)
    for value in (mu, near):
        x = path_w[0] - value * path_w[1]
        assert x @ G @ x - 2 * b @ x + yy == pytest.approx(c + value**2 * a, rel=1e-9, abs=1e-12 * yy)


def test_a_kept_inverse_gives_the_same_path():
    """From mu to mu/2 with the inverse of the first path, and without; and a spoilt inverse is noticed."""
    problem = neuron(3, 12, 10, 60, "positive")
    G, b, _, C, A, v = problem
    size, nothing = systems.rms_norm(G, A), (np.empty(0, np.int64), np.empty((0, 0)))
    w, eta, paths = np.zeros(12), np.zeros(10), (np.zeros((2, 12)), np.zeros((2, 10)))
    _, _, basis, inverse = path.follow(
        G, b, C, A, v, 2.0, *paths, w, eta, 1e-12, size, 1e-9, *nothing, 500, unlimited()
    )
    assert basis.size > 3
    ends = []
    for kept in (nothing, (basis, inverse), (basis, 1.01 * inverse)):
        x, y = w.copy(), eta.copy()
        arrived, *_ = path.follow(G, b, C, A, v, 1.0, *paths, x, y, 1e-12, size, 1e-9, *kept, 500, unlimited())
        assert arrived
        ends.append(x)
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-9)
    np.testing.assert_allclose(ends[2], ends[0], atol=1e-9)


def test_a_wrong_guess_is_not_verified(rng):
    G, b, yy, C, A, v = neuron(0, 6, 4, 50, "positive")
    w, eta = np.ones(6), np.ones(4)
    verified, *_ = active_set.exact(G, b, yy, C, A, v, 0.5, np.zeros((2, 6)), np.zeros((2, 4)), w, eta, 1e-8, 1e-9, 0)
    assert not verified
    np.testing.assert_array_equal(w, 1)
    np.testing.assert_array_equal(eta, 1)


def test_bounds_that_all_meet_at_zero():
    """Near w = 0 every bound of a ReLU is active: the neuron ends at zero, not in a cycle."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((10, 300))
    x = rng.standard_normal(10)
    problem = np.outer(x, x), 0.1 * x, 0.01, np.ones(10), A, np.zeros(300)
    w, eta = 1e-3 * rng.standard_normal(10), np.abs(rng.standard_normal(300))
    arrived, kinks = follow(problem, 0.05, w, eta, feasible=1e-6)
    assert arrived
    assert kinks < 200
    assert (w @ A).max() <= 1e-6


def rarely_active(seed: int, n: int = 80, k: int = 140, samples: int = 9):
    """A ReLU neuron with few active samples among many bounds: dependent inputs, and dependent bounds at w = 0."""
    rng = np.random.default_rng(seed)
    mix = rng.random((n, 12))
    X, A = (
        np.maximum(0.5 * mix @ rng.standard_normal((12, m)) + 0.3 * rng.standard_normal((n, m)) - 0.2, 0)
        for m in (samples, k)
    )
    y = 0.1 * rng.exponential(size=samples)
    w = np.where(rng.random(n) < 0.2, 0.1 * rng.standard_normal(n), 0)
    eta = np.where(rng.random(k) < 0.1, 0.1 * rng.random(k), 0)
    return (X @ X.T, X @ y, float(y @ y), np.ones(n), A, np.zeros(k)), w, eta


@pytest.mark.parametrize("seed", range(40))
def test_a_path_gets_through_dependent_sets(seed):
    """With a relative shift of 1e-9 the inverse lost its digits in 3 of these 40, and the path ended anywhere."""
    problem, w, eta = rarely_active(seed)
    G, b, yy, C, A, v = problem
    mu, n, k = 0.02 * np.abs(b).max(), *A.shape
    paths, kept = (np.zeros((2, n)), np.zeros((2, k))), (np.empty(0, np.int64), np.empty((0, 0)))
    size = systems.rms_norm(G, A)
    arrived, kinks, *_ = path.follow(G, b, C, A, v, mu, *paths, w, eta, 1e-6, size, SHIFTS[0], *kept, 2300, unlimited())
    assert arrived
    assert kinks < 1000
    assert active_set.exact(G, b, yy, C, A, v, mu, *paths, w, eta, 1e-5, 1e-6, 3)[0]


# the method


def run(problem, start, **settings):
    """The method alone, from a given start; returns the certified pair of its last round."""
    solver = nt.Solver(problem, **({"gap_tol": 1e-9, "feas_tol": 1e-9} | settings))
    method = WorkingSet(solver._loop(), solver.settings, 2, lambda: None)
    found = {}

    def accept(check):
        found["W"], found["L"] = check.weights, check.multiplier()
        return abs(check.gap) <= 1e-9 and check.violation <= 1e-9

    reason, rounds = method.run(start, accept, lambda check: None)
    return reason, rounds, found


@pytest.mark.parametrize("kind", ["relu", "neuronwise", "bias free", "bounds"])
def test_the_answer_does_not_depend_on_the_start(kind):
    problem = random_problem(np.random.default_rng(3), 30, 6, 250, **KINDS[kind])
    loop = nt.Solver(problem)._loop()
    good = coarse_start(loop, lambda: None)
    rng = np.random.default_rng(1)
    nothing = Start(0 * good.W, [np.zeros(0, int)] * 6, [np.zeros(0)] * 6, 10 * good.mu)
    noise = Start(
        rng.standard_normal(good.W.shape),
        [rng.choice(250, 20, replace=False) for _ in range(6)],
        [0.1 * rng.exponential(size=20) for _ in range(6)],
        0.3 * good.mu,
    )
    objectives = []
    for start in (good, nothing, noise):
        reason, _, found = run(problem, start)
        assert reason == "accepted"
        assert nt.certify(problem, found["W"], found["L"]).holds(1e-8, 1e-8)
        objectives.append((np.abs(found["W"]) * problem.C).sum())
    np.testing.assert_allclose(objectives, objectives[0], rtol=1e-7)


@pytest.mark.parametrize("kind", ["relu", "linear", "neuronwise", "bias free"])
def test_known_optima_to_1e_9(kind):
    known = known_optimum(np.random.default_rng(7), 80, 10, 300, **KINDS[kind])
    solution = nt.Solver(known.problem, method="working_set", gap_tol=1e-9, feas_tol=1e-9).solve()
    assert solution.settings["method"] == "working_set"
    assert solution.certificate.holds(1e-9, 1e-9)
    assert solution.certificate.objective == pytest.approx(known.objective, rel=1e-9)


@given(
    seed=st.integers(0, 10**6),
    N=st.integers(2, 30),
    M=st.integers(1, 6),
    more=st.integers(0, 200),
    neuronwise=st.booleans(),
    weights=st.sampled_from(["one", "rows", "columns", "entries"]),
    epsilon=st.floats(-3, -0.3).map(lambda e: 10.0**e),
    scale=st.integers(-6, 6).map(lambda e: 10.0**e),
)
@example(seed=0, N=30, M=4, more=200, neuronwise=False, weights="rows", epsilon=0.1, scale=1e6)
@example(seed=1, N=12, M=3, more=0, neuronwise=True, weights="one", epsilon=0.01, scale=1.0)
@example(seed=2, N=2, M=1, more=5, neuronwise=False, weights="entries", epsilon=0.5, scale=1e-6)
def test_linear_layers_of_few_inputs_end_in_one_round(seed, N, M, more, neuronwise, weights, epsilon, scale):
    known = known_optimum(
        np.random.default_rng(seed), N, M, N + more, linear=True, neuronwise=neuronwise, weights=weights,
        epsilon=epsilon, kept=0.3,
    )  # fmt: skip
    p = known.problem
    scaled = p.replace(X=scale * p.X, Y=scale * p.Y, epsilon_abs=scale * p.epsilon)
    solution = nt.Solver(scaled, method="working_set", gap_tol=1e-8, feas_tol=1e-8).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    assert solution.certificate.objective == pytest.approx(known.objective, rel=1e-7, abs=1e-7)
    if solution.settings["method"] == "working_set":
        assert solution.iterations <= 1


@pytest.mark.parametrize("options", [{}, {"neuronwise": True}, {"weights": "rows"}, {"weights": "entries"}], ids=str)
@pytest.mark.parametrize("epsilon", [0.3, 0.03, 0.003])
def test_all_inputs_from_the_start_change_no_answer(monkeypatch, options, epsilon):
    problem = random_problem(np.random.default_rng(5), 40, 6, 300, linear=True, epsilon=epsilon, **options)
    whole = nt.Solver(problem, method="working_set", gap_tol=1e-9, feas_tol=1e-9).solve()
    monkeypatch.setattr(coarse, "WHOLE", 0)
    grown = nt.Solver(problem, method="working_set", gap_tol=1e-9, feas_tol=1e-9).solve()
    assert whole.iterations == 1 < grown.iterations
    assert whole.status == grown.status == nt.Status.SOLVED
    assert whole.certificate.objective == pytest.approx(grown.certificate.objective, rel=1e-8)


def test_outputs_of_zero_and_inputs_of_zero_at_the_start():
    rng = np.random.default_rng(6)
    problem = random_problem(rng, 20, 4, 200, linear=True)
    X, Y = problem.X.copy(), problem.Y.copy()
    X[3], Y[1] = 0, 0
    for options in ({"neuronwise": True}, {}):
        solution = nt.Solver(nt.Problem(X, Y, 0.1, omega="linear", **options), method="working_set").solve()
        assert solution.status == nt.Status.SOLVED
        assert not solution.W[3].any() and not solution.W[:, 1].any()


@pytest.mark.parametrize("times", [1e-3, 0.1, 10.0, 1e3])
@pytest.mark.parametrize("neuronwise", [False, True])
def test_the_level_is_met_from_far_away(times, neuronwise):
    problem = random_problem(np.random.default_rng(8), 60, 5, 300, linear=True, epsilon=0.02, neuronwise=neuronwise)
    loop = nt.Solver(problem)._loop()
    start = coarse.whole_start(loop)
    method = WorkingSet(loop, nt.Settings.make(gap_tol=1e-8, feas_tol=1e-8), 1, lambda: None)
    found = []

    def accept(check):
        found.append(check.violation)
        return abs(check.gap) < 1e-8

    assert method.run(replace(start, mu=times * start.mu), accept, lambda check: None) == ("accepted", 1)
    assert found[0] < 1e-8


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_answer(threads):
    problem = random_problem(np.random.default_rng(2), 40, 7, 300)
    one = nt.Solver(problem, method="working_set", n_threads=1).solve()
    other = nt.Solver(problem, method="working_set", n_threads=threads).solve()
    np.testing.assert_allclose(one.W, other.W, atol=1e-9 * np.abs(one.W).max())
    assert one.iterations == other.iterations


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_solve_takes_one_round(kind):
    problem = random_problem(np.random.default_rng(4), 30, 5, 300, **KINDS[kind])
    solver = nt.Solver(problem, method="working_set")
    first, second = solver.solve(), solver.solve()
    assert second.status == nt.Status.SOLVED
    # the neurons of a linear layer lack no inputs from the start
    assert second.iterations == 1 and first.iterations > 1 - (kind == "linear")
    assert second.certificate.objective == pytest.approx(first.certificate.objective, rel=2e-3)


@pytest.mark.parametrize(
    "change",
    [{"epsilon": 0.15}, {"epsilon": 0.05}, {"V": 0.2}, {"C": np.linspace(0.5, 2, 30)}, {"neuronwise": True}],
    ids=lambda change: next(iter(change)),
)
def test_updates_start_from_the_last_sets(change):
    problem = random_problem(np.random.default_rng(4), 30, 5, 300)
    solver = nt.Solver(problem, method="working_set", gap_tol=1e-7)
    solver.solve()
    kept = solver._working
    assert kept is not None
    warm = solver.update(**change).solve()
    cold = nt.Solver(problem.replace(**change), method="working_set", gap_tol=1e-7).solve()
    assert warm.status == cold.status == nt.Status.SOLVED
    assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=1e-6)


def test_bounds_that_become_infinite_are_watched_no_more():
    problem = random_problem(np.random.default_rng(4), 30, 5, 300)
    solver = nt.Solver(problem, method="working_set", gap_tol=1e-7)
    solver.solve()
    V = np.where(np.random.default_rng(0).random(problem.Y.shape) < 0.5, np.inf, 0.0)
    warm = solver.update(V=V).solve()
    cold = nt.Solver(problem.replace(V=V), method="working_set", gap_tol=1e-7).solve()
    assert warm.status == cold.status == nt.Status.SOLVED
    assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=1e-6)


def test_another_omega_forgets_the_products():
    problem = random_problem(np.random.default_rng(4), 30, 5, 300)
    solver = nt.Solver(problem, method="working_set")
    solver.solve()
    changed = problem.replace(omega=problem.Y > 0.1, V=0.1)
    solution = solver.update(omega=problem.Y > 0.1, V=0.1).solve()
    alone = nt.Solver(changed, method="working_set").solve()
    assert solution.status == alone.status == nt.Status.SOLVED
    assert solution.certificate.objective == pytest.approx(alone.certificate.objective, rel=2e-3)


def test_history_has_the_violation_of_every_round():
    rows = []
    problem = random_problem(np.random.default_rng(4), 30, 5, 300)
    solution = nt.Solver(problem, method="working_set", gap_tol=1e-7, callback=rows.append).solve()
    assert rows == solution.history
    assert [row["iteration"] for row in rows] == list(range(1, solution.iterations + 1))
    assert rows[-1]["violation"] == pytest.approx(solution.certificate.violation, abs=1e-9)
    assert rows[-1]["gap"] == pytest.approx(solution.certificate.gap, abs=1e-8)
    # the sets grow, and hold the answer; the ball is met at the end
    assert all(a["inputs"] <= b["inputs"] and a["kinks"] <= b["kinks"] for a, b in itertools.pairwise(rows))
    assert rows[-1]["inputs"] >= np.count_nonzero(solution.W)
    assert rows[-1]["bounds"] >= np.count_nonzero(solution.dual[~problem.mask])
    assert rows[-1]["ball"] == pytest.approx(1, abs=1e-6)


def test_a_callback_stops_it_and_a_further_solve_goes_on():
    problem = random_problem(np.random.default_rng(4), 30, 5, 300)
    solver = nt.Solver(problem, method="working_set", gap_tol=1e-9, callback=lambda row: row["iteration"] == 2)
    stopped = solver.solve()
    assert stopped.status == nt.Status.INTERRUPTED
    assert stopped.iterations == 2
    assert nt.certify(problem, stopped.W, stopped.dual) == stopped.certificate
    solver.settings = nt.Settings(method="working_set", gap_tol=1e-9)
    rest = solver.solve()
    assert rest.status == nt.Status.SOLVED
    cold = nt.Solver(problem, method="working_set", gap_tol=1e-9).solve()
    assert rest.iterations <= cold.iterations


def test_max_iterations_limits_the_rounds():
    problem = random_problem(np.random.default_rng(4), 30, 5, 300)
    solution = nt.Solver(problem, method="working_set", gap_tol=1e-9, max_iterations=1).solve()
    assert solution.status == nt.Status.MAX_ITERATIONS
    assert solution.iterations == 1
    assert solution.settings["method"] == "working_set"


# the ways out


@pytest.mark.parametrize(
    ("problem_options", "settings", "why"),
    [
        ({"epsilon": 1e-5}, {}, "epsilon is too small"),
        ({"epsilon": 1e-6}, {"gap_tol": 1e-2}, "epsilon is too small"),
        ({}, {"memory_limit": 1e3}, "memory_limit"),
    ],
)
def test_it_hands_over_with_a_reason(caplog, problem_options, settings, why):
    problem = random_problem(np.random.default_rng(0), 20, 5, 120, **problem_options)
    with caplog.at_level(logging.INFO, logger="nettrim"):
        solution = nt.Solver(problem, method="working_set", **settings).solve()
    assert why in caplog.text
    assert solution.settings["method"] == "admm"
    assert solution.status == nt.Status.SOLVED


def test_a_path_stops_at_what_it_may_take():
    problem = neuron(3, 40, 60, 200)
    taken = []
    for most in (np.inf, 1e5):
        G, b, _, C, A, v = problem
        w, eta, work = np.zeros(40), np.zeros(60), np.array([0.0, most])
        kept = np.empty(0, np.int64), np.empty((0, 0))
        arrived, *_ = path.follow(
            *(G, b, C, A, v, 0.01 * np.abs(b).max(), np.zeros((2, 40)), np.zeros((2, 60)), w, eta),
            *(1e-12, systems.rms_norm(G, A), 1e-7, *kept, 5000, work),
        )
        assert arrived == np.isinf(most)
        taken.append(work[0])
    # the last kink is what is above it
    assert taken[1] < 1e5 + 10 * (40 * 100 + 2 * 100**2) < taken[0]


def test_auto_leaves_working_sets_that_take_too_long(monkeypatch, caplog):
    """They cost at most as much as ADMM is expected to, are not tried again, and the answer is that of ADMM."""
    problem = random_problem(np.random.default_rng(5), 40, 6, 400)
    expected = nt.Solver(problem, method="admm").solve()
    monkeypatch.setattr(run_module, "NOTHING", 1.0)
    monkeypatch.setattr(run_module, "SPENT", 1e-6)
    caplog.set_level(logging.INFO, logger="nettrim")
    solver = nt.Solver(problem)
    first, second = solver.solve(), solver.update(epsilon=0.2).solve()
    for solution in (first, second):
        assert solution.status == nt.Status.SOLVED
        assert solution.settings["method"] == "admm"
    assert first.certificate.objective == pytest.approx(expected.certificate.objective, rel=2e-3)
    said = [record.getMessage() for record in caplog.records]
    assert [("earlier" in line) for line in said if "ADMM is expected to" in line] == [False, True]
    # another Omega is another problem
    caplog.clear()
    solver.update(Y=np.maximum(problem.Y - 0.1 * problem.Y.mean(), 0)).solve()
    assert not any("earlier" in record.getMessage() for record in caplog.records)
    # whoever asks for working sets gets them
    asked = nt.Solver(problem, method="working_set").solve()
    assert asked.settings["method"] == "working_set"


@pytest.mark.parametrize("kind", ["outputs", "bound", "bounds", "neuronwise"])
def test_infeasible_problems_are_proved(kind):
    known = infeasible_with_ray(np.random.default_rng(1), kind)
    solution = nt.Solver(known.problem, method="working_set").solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert nt.verify_ray(known.problem, solution.ray) > 1e4


def test_auto_takes_admm_where_it_is_expected_to_be_quicker(monkeypatch, caplog):
    problem = random_problem(np.random.default_rng(0), 20, 5, 120)
    assert nt.Solver(problem).solve().settings["method"] == "working_set"
    monkeypatch.setattr(run_module, "NOTHING", 0.0)
    monkeypatch.setattr(run_module, "FINE_START", 0.0)
    monkeypatch.setattr(run_module, "DENSE", -1.0)
    with caplog.at_level(logging.INFO, logger="nettrim"):
        solution = nt.Solver(problem).solve()
    assert solution.settings["method"] == "admm"
    assert "dense" in caplog.text
    # what ADMM did for the start is not done again
    assert [row["iteration"] for row in solution.history] == sorted({row["iteration"] for row in solution.history})
    assert solution.iterations >= solution.history[-1]["iteration"]
    # a method that was asked for is used
    assert nt.Solver(problem, method="working_set").solve().settings["method"] == "working_set"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("neuronwise", [False, True])
def test_a_start_from_admm_on_all_samples_gives_the_same_answer(monkeypatch, dtype, neuronwise):
    problem = random_problem(np.random.default_rng(1), 30, 12, 1500, neuronwise=neuronwise, dtype=dtype)
    coarse = nt.Solver(problem, method="working_set").solve()
    monkeypatch.setattr(run_module, "NOTHING", 0.0)
    monkeypatch.setattr(run_module, "FINE_START", 0.0)
    fine = nt.Solver(problem, method="working_set").solve()
    assert fine.status == coarse.status == nt.Status.SOLVED
    assert fine.settings["method"] == "working_set"
    assert "inputs" not in fine.history[0]
    assert "inputs" in fine.history[-1]
    assert fine.certificate.objective == pytest.approx(coarse.certificate.objective, rel=2e-3)
    phases = dict(fine.seconds)
    # nothing is counted twice, and little not at all
    assert 0.5 * phases["total"] <= sum(t for phase, t in phases.items() if phase != "total") <= phases["total"] + 1e-5


@pytest.mark.parametrize("reason", ["time_limit", "interrupted", "max_iterations"])
def test_a_limit_during_the_start_from_admm_returns_its_weights(monkeypatch, reason):
    problem = random_problem(np.random.default_rng(1), 30, 12, 1500)
    monkeypatch.setattr(run_module, "NOTHING", 0.0)
    monkeypatch.setattr(run_module, "FINE_START", 0.0)
    monkeypatch.setattr(run_module, "FINE_GAP", 0.0)
    rows = []
    settings = {
        "time_limit": {"time_limit": 0.0},
        "interrupted": {"callback": lambda row: rows.append(row) or len(rows) == 2},
        "max_iterations": {"max_iterations": 30},
    }[reason]
    solution = nt.Solver(problem, method="working_set", polish=False, **settings).solve()
    assert solution.status == nt.Status(reason)
    assert solution.settings["method"] == "admm"
    assert np.isfinite(solution.certificate.objective)


def test_the_estimate_grows_with_the_supports_and_admms_with_the_digits():
    problem = random_problem(np.random.default_rng(0), 200, 300, 400)
    loop = nt.Solver(problem)._loop()
    start = coarse_start(loop, lambda: None)
    dense = Start(np.ones_like(start.W), start.samples, start.eta, start.mu)
    for constants in (COARSE, FINE):
        assert exact_work(dense, loop, constants) > exact_work(start, loop, constants) > 0
    relative = relative_radius(loop)
    assert relative == pytest.approx(0.1)
    assert iterations(relative, 1e-6) > iterations(relative, 1e-3) > 0
    half = nt.Solver(problem.replace(dtype=np.float32))._loop()
    assert iteration_work(half) < iteration_work(loop)


def test_a_neuron_that_its_bounds_press_to_zero_is_exactly_zero():
    """Samples next to its active ones forbid any output: all bounds meet in w = 0, and paths end only near it."""
    rng = np.random.default_rng(0)
    X = np.maximum(rng.standard_normal((60, 800)), 0)
    X[:, 60:120] = X[:, :60] + 0.05 * rng.random((60, 60))
    Y = np.maximum(rng.standard_normal((60, 8)).T @ X, 0)
    Y[0] = 0
    Y[0, :60] = 2 + rng.random(60)
    solution = nt.solve(X, Y, epsilon=0.3, gap_tol=1e-6, method="working_set")
    assert solution.status == nt.Status.SOLVED
    assert not solution.W[:, 0].any()
    # weights within rounding of zero would cost more than that
    assert abs(solution.certificate.gap) < 1e-9


def test_float32_stops_where_its_precision_ends():
    """A gap that float32 weights cannot have ends the solve, with the status that says so."""
    problem = random_problem(np.random.default_rng(0), 40, 6, 300, dtype=np.float32)
    solution = nt.Solver(problem, method="working_set", gap_tol=1e-10, feas_tol=1e-10, max_iterations=400).solve()
    assert solution.status in (nt.Status.MAX_ITERATIONS, nt.Status.SOLVED_INACCURATE)
    assert "float64" in solution.message
    assert abs(solution.certificate.gap) < 1e-4
    tight = solve_tightly(problem.replace(dtype=np.float64), method="working_set")
    assert solution.certificate.objective == pytest.approx(tight.certificate.objective, rel=1e-4)


def test_a_neuron_that_is_hardly_ever_active():
    """One active sample and bounds everywhere else: a singular G that only the bounds complete."""
    rng = np.random.default_rng(5)
    problem = random_problem(rng, 30, 4, 300)
    Y = problem.Y.copy()
    Y[0] = 0
    Y[0, 7] = 0.01
    Y[1] = 0
    changed = nt.Problem(problem.X, Y, 0.1)
    solution = solve_tightly(changed)
    assert solution.settings["method"] == "working_set"
    assert not solution.W[:, 1].any()


def test_a_neuron_is_zero_only_if_its_bound_says_so():
    """Costs that differ widely: an input over its own small cost scales the whole bound, and is no rounding."""
    from types import SimpleNamespace

    from nettrim.working_set import WorkingSet

    neuron = SimpleNamespace(A=np.zeros((2, 0)), eta=np.zeros(0))
    b, C, mu, yy = np.array([0.5, 0.011]), np.array([1.0, 0.01]), 1.0, 1.0
    # the bound is scaled by 1 / 1.1, which costs up to a tenth of yy
    for share, expected in ((0.05, False), (0.2, True)):
        found = WorkingSet._is_zero(SimpleNamespace(share=share), neuron, b, C, np.zeros(0), mu, yy)
        assert bool(found) is expected


def test_reweighted_norms_are_solved_from_a_warm_start():
    """Costs that differ by a factor of a hundred, some neurons that end at zero: each round to the gap asked for."""
    rng = np.random.default_rng(0)
    X = np.maximum(rng.standard_normal((40, 800)) + 0.3, 0)
    W = rng.standard_normal((40, 60)) ** 3 * np.exp(rng.standard_normal(60)) - 0.3
    solver = nt.Solver(nt.Problem(X, np.maximum(W.T @ X, 0), 0.5), method="working_set", gap_tol=1e-5)
    zero = 0
    for _ in range(4):
        sol = solver.solve()
        assert sol.status == nt.Status.SOLVED and sol.settings["method"] == "working_set"
        zero = max(zero, int((sol.W == 0).all(0).sum()))
        size = np.abs(sol.W)
        solver.update(C=1 / (size + 0.01 * np.maximum(size.max(0), 0.01 * size.max())))
    assert zero > 0


def test_the_residual_is_that_of_the_weights():
    """Where active bounds are nearly dependent, w0 and w1 of w0 - mu w1 lose digits that cancel in w, but not in q."""
    problem = neuron(3, 8, 10, 30, "positive")
    G, b, yy = problem[:3]
    mu, w, eta = 0.5, np.zeros(8), np.zeros(10)
    path_w, path_eta = np.zeros((2, 8)), np.zeros((2, 10))
    assert active_set.exact(*problem, mu, path_w, path_eta, w, eta, 1e-8, 1e-9, 20)[0]
    lost = np.where(w != 0, 0.1 * np.random.default_rng(0).standard_normal(8), 0)
    path_w += np.array([mu * lost, lost])
    verified, _, c, a = active_set.exact(*problem, mu, path_w, path_eta, w, eta, 1e-8, 1e-9, 0)
    assert verified and a >= 0
    assert c + mu**2 * a == pytest.approx(systems.square(G, b, yy, w), rel=1e-12)


# a radius of zero


@pytest.mark.parametrize("shape", [(20, 5, 120), (60, 8, 100), (150, 10, 400)])
@pytest.mark.parametrize("options", [{}, {"neuronwise": True}, {"weights": "rows"}, {"linear": True}], ids=str)
def test_equalities_with_a_known_optimum(shape, options):
    k = known_optimum(np.random.default_rng(3), *shape, epsilon=0.0, **options)
    solution = nt.Solver(k.problem, method="working_set", gap_tol=1e-8, feas_tol=1e-8).solve()
    assert solution.status == nt.Status.SOLVED and solution.settings["method"] == "working_set", solution.message
    assert solution.certificate.objective == pytest.approx(k.objective, rel=1e-8)
    np.testing.assert_allclose(solution.W, k.W, atol=1e-7)


def test_equalities_of_few_samples():
    """Fewer samples than inputs, where the outputs do not determine the weights: basis pursuit with inequalities."""
    rng = np.random.default_rng(5)
    W = rng.standard_normal((120, 6)) * (rng.random((120, 6)) < 0.05)
    X = rng.standard_normal((120, 70))
    problem = nt.Problem(X, np.maximum(W.T @ X, 0), epsilon=0.0)
    found = nt.Solver(problem, method="working_set", gap_tol=1e-7, feas_tol=1e-7).solve()
    assert found.status == nt.Status.SOLVED and found.settings["method"] == "working_set", found.message
    assert found.certificate.objective <= np.abs(W).sum() * (1 + 1e-7)
    # the multipliers are those of the equalities: they certify the same weights in a problem with a small ball
    again = nt.certify(problem, found.W, found.dual)
    assert abs(again.gap) <= 1e-7
    warm = nt.Solver(problem, method="working_set").start(found).solve()
    assert warm.status == nt.Status.SOLVED


def test_equalities_that_contradict_each_other():
    rng = np.random.default_rng(6)
    X = rng.standard_normal((10, 60))
    Y = np.abs(rng.standard_normal((4, 60)))
    solution = nt.Solver(nt.Problem(X, Y, epsilon=0.0), method="working_set").solve()
    assert solution.status == nt.Status.INFEASIBLE and solution.smallest_epsilon > 0


def test_the_better_of_two_methods_is_returned(monkeypatch):
    """After a hand-over that ends at a limit, what the working sets had found is not lost."""
    from nettrim.equalities import Equalities

    problem = random_problem(np.random.default_rng(0), 40, 5, 30, epsilon=0.0)
    monkeypatch.setattr(Equalities, "patience", 1)
    solution = nt.Solver(problem, gap_tol=1e-13, feas_tol=1e-13, max_iterations=40, polish=False).solve()
    assert solution.status != nt.Status.SOLVED
    admm = nt.Solver(problem, gap_tol=1e-13, feas_tol=1e-13, max_iterations=40, polish=False, method="admm").solve()
    assert abs(solution.certificate.gap) < 0.1 * abs(admm.certificate.gap)


@pytest.mark.parametrize("shape", [(80, 10, 300), (300, 4, 200)], ids=["determined", "few samples"])
@pytest.mark.parametrize("linear", [False, True])
def test_equalities_in_single_precision(shape, linear):
    N, M, P = shape
    rng = np.random.default_rng(0)
    X, W = (rng.standard_normal(s).astype(np.float32) for s in ((N, P), (N, M)))
    Y = W.T @ X if linear else np.maximum(W.T @ X, 0)
    solution = nt.solve(X, Y, epsilon=0.0, omega="linear" if linear else "active")
    assert solution.status == nt.Status.SOLVED, solution.message


def test_a_start_for_another_radius():
    """From a large ball to one a quarter the size: the sets lack inputs, and mu must not follow the ball at once."""
    k = random_problem(np.random.default_rng(7), 200, 12, 900, epsilon=0.2)
    solver = nt.Solver(k, method="working_set")
    solver.solve()
    for epsilon in (0.05, 0.045, 0.03, 0.2):
        warm = solver.update(epsilon=epsilon).solve()
        cold = nt.Solver(k.replace(epsilon=epsilon), method="working_set").solve()
        assert warm.status == nt.Status.SOLVED and warm.settings["method"] == "working_set"
        assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=2e-3)
        kinks = [solution.history[-1]["kinks"] for solution in (warm, cold)]
        assert kinks[0] <= 2 * kinks[1]


def test_a_path_turns_no_more_often_than_its_inputs_allow(monkeypatch):
    # as in a cascade: thousands of bounds, all of them tight at the layer's own weights
    rng = np.random.default_rng(0)
    N, P = 20, 4000
    X = np.vstack([np.maximum(rng.standard_normal((N - 1, P)), 0), np.ones((1, P))])
    own = rng.standard_normal((N, 3))
    fed = np.vstack([np.maximum(X[:-1] + 0.02 * rng.standard_normal((N - 1, P)), 0), np.ones((1, P))])
    Y, Z = np.maximum(own.T @ X, 0), own.T @ fed
    distance = float(np.linalg.norm((Z - Y)[Y > 0]))
    problem = nt.Problem(fed, Y, epsilon_abs=1.05 * distance, V=np.where(Y > 0, 0, Z))
    follow, seen = path.follow, []

    def watched(*arguments):
        inputs, bounds, most = arguments[0].shape[0], arguments[3].shape[1], arguments[-2]
        seen.append((inputs, bounds, most))
        return follow(*arguments)

    monkeypatch.setattr(path, "follow", watched)
    sol = nt.Solver(problem, method="working_set").solve()
    assert sol.status == nt.Status.SOLVED and seen
    assert max(bounds for _, bounds, _ in seen) > 2 * N
    assert all(most <= 20 * inputs + 100 for inputs, _, most in seen)

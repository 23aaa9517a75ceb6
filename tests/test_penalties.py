"""Penalties in the place of the l1 norm: prox, conjugate, agreement with cvxpy, known optima, structure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from instances import known_optimum, random_problem

import nettrim as nt
from nettrim import penalties as pn

pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")

N, M = 16, 4
LABELS = np.append(np.arange(N - 1) // 3, 5)
ENTRIES = (np.arange(N)[:, None] // 4) * 2 + (np.arange(M)[None] // 2)
PENALTIES = {
    "l1": pn.L1(),
    "elastic net": pn.ElasticNet(0.5),
    "ridge": pn.Ridge(),
    "rows": pn.Rows(),
    "columns": pn.Columns(),
    "groups": pn.Groups(LABELS),
    "blocks": pn.Groups(ENTRIES),
    "2:4": pn.KSupport(),
    "1:4": pn.KSupport(1, 4),
    "3:8": pn.KSupport(3, 8),
    "nuclear": pn.Nuclear(),
    "total variation": pn.TotalVariation((3, 5), 0.5),
    "total variation of channels": pn.TotalVariation((3, 5), 2.0, axes=(1,)),
}
OTHERS = {name: penalty for name, penalty in PENALTIES.items() if name != "l1"}
#: norms: their conjugate is zero or infinite
NORMS = [name for name in PENALTIES if name not in ("elastic net", "ridge")]


def free_bias(penalty: pn.Penalty) -> np.ndarray:
    """C with a free last row; of rows of different weights where the penalty allows them."""
    C = np.ones((N, 1))
    if penalty.name in ("l1", "elastic_net", "ridge", "rows"):
        C[:] = np.linspace(0.5, 2, N)[:, None]
    C[-1] = 0
    if isinstance(penalty, pn.KSupport):
        C[-penalty.of :] = 0
    return C


def random_layer(seed: int, **options) -> nt.Problem:
    return random_problem(np.random.default_rng(seed), N, M, 80, **options)


@pytest.mark.parametrize("neuronwise", [False, True], ids=["one ball", "neuronwise"])
@pytest.mark.parametrize("bias", [False, True], ids=["all penalised", "bias free"])
@pytest.mark.parametrize("name", PENALTIES)
def test_agrees_with_cvxpy(name, bias, neuronwise):
    penalty = PENALTIES[name]
    problem = random_layer(1, neuronwise=neuronwise, epsilon=0.2)
    problem = problem.replace(penalty=penalty, C=free_bias(penalty) if bias else 1.0)
    ours = nt.Solver(problem, gap_tol=1e-5, feas_tol=1e-6).solve()
    theirs = nt.reference.solve(problem)
    assert ours.status == nt.Status.SOLVED, ours.message
    assert theirs.certificate.holds(1e-6, 1e-6), theirs.message
    assert ours.certificate.objective == pytest.approx(theirs.certificate.objective, rel=2e-5)
    # each proves the other's optimality
    assert ours.certificate.dual_bound <= theirs.certificate.objective * (1 + 1e-5)
    assert theirs.certificate.dual_bound <= ours.certificate.objective * (1 + 1e-5)


@pytest.mark.parametrize("name", ["elastic net", "rows", "columns", "nuclear"])
@pytest.mark.parametrize("kind", [{"linear": True}, {"bound": "array"}], ids=["linear", "bounds"])
def test_agrees_with_cvxpy_on_other_layers(name, kind):
    problem = random_layer(2, **kind).replace(penalty=PENALTIES[name])
    assert problem.compact == ("linear" in kind)
    ours = nt.Solver(problem, gap_tol=1e-5, feas_tol=1e-6).solve()
    theirs = nt.reference.solve(problem)
    assert ours.status == nt.Status.SOLVED, ours.message
    assert ours.certificate.objective == pytest.approx(theirs.certificate.objective, rel=2e-5)


@pytest.mark.parametrize("neuronwise", [False, True], ids=["one ball", "neuronwise"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_known_optimum(name, neuronwise):
    penalty = PENALTIES[name]
    weights = "one" if "total" in name or ":" in name else "rows"
    rng = np.random.default_rng(3)
    k = known_optimum(rng, N, M, 200, penalty=penalty, neuronwise=neuronwise, weights=weights)
    exact = nt.certify(k.problem, k.W, k.multiplier)
    assert exact.objective == pytest.approx(k.objective, rel=1e-12)
    # the bound of a total variation comes from a dual variable that is searched for
    assert abs(exact.gap) < (1e-3 if "total" in name else 1e-9)
    solution = nt.Solver(k.problem, gap_tol=1e-4, feas_tol=1e-5).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    assert solution.certificate.objective == pytest.approx(k.objective, rel=3e-4)


@pytest.mark.parametrize("name", ["rows", "columns", "nuclear"])
def test_a_known_optimum_of_some_size(name):
    k = known_optimum(np.random.default_rng(4), 120, 40, 600, np.float32, penalty=PENALTIES[name])
    solution = nt.Solver(k.problem).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    assert solution.certificate.objective == pytest.approx(k.objective, rel=2e-3)


@pytest.mark.parametrize("bias", [False, True], ids=["all penalised", "bias free"])
@pytest.mark.parametrize("name", PENALTIES)
@given(seed=st.integers(0, 2**31), tau=st.floats(0.01, 10), step=st.floats(1e-3, 1.0))
@example(seed=0, tau=1.0, step=0.1)
@settings(max_examples=15, deadline=None)
def test_the_prox_is_a_minimiser(name, bias, seed, tau, step):
    penalty = PENALTIES[name]
    rng = np.random.default_rng(seed)
    C = free_bias(penalty) if bias else np.ones((1, 1))
    B, D = rng.standard_normal((2, N, M))

    def value(W):
        return penalty.value(W, C) + ((W - B) ** 2).sum() / (2 * tau)

    memory = {}
    for _ in range(10 if "total" in name else 1):
        W = penalty.prox(B, tau, C, memory)
    slack = 1e-6 if "total" in name else 1e-11
    for other in (W + step * D, W * (1 + step), (1 - step) * W, W + step * (B - W)):
        assert value(W) <= value(other) * (1 + slack)
    if bias:
        np.testing.assert_allclose(W[-1], B[-1])


@pytest.mark.parametrize("name", NORMS)
@given(seed=st.integers(0, 2**31), size=st.floats(1e-3, 1e3))
@example(seed=0, size=10.0)
@settings(max_examples=15, deadline=None)
def test_scaled_multipliers_are_dual_feasible(name, seed, size):
    # <t H, W> <= Phi(W) for every W
    penalty = PENALTIES[name]
    rng = np.random.default_rng(seed)
    H, W = rng.standard_normal((2, N, M))
    C = np.ones((1, 1))
    scale = penalty.scales(size * H, C)
    assert (scale <= 1).all() and (scale > 0).all()
    assert scale.size == (M if penalty.separable else 1)
    for weights in (W, np.sign(H), H, penalty.prox(H, 1.0, C)):
        assert (scale * size * H * weights).sum() <= penalty.value(weights, C) * (1 + 1e-9)


@pytest.mark.parametrize("neuronwise", [False, True], ids=["one ball", "neuronwise"])
@pytest.mark.parametrize("name", PENALTIES)
@given(seed=st.integers(0, 2**31), size=st.floats(1e-4, 10))
@example(seed=0, size=0.01)
@settings(max_examples=15, deadline=None)
def test_weak_duality(name, neuronwise, seed, size):
    # any multipliers prove less than any feasible weights cost
    rng = np.random.default_rng(seed)
    X, W = rng.standard_normal((N, 60)), rng.standard_normal((N, M))
    problem = nt.Problem(X, np.maximum(W.T @ X, 0), 0.1, penalty=PENALTIES[name], neuronwise=neuronwise)
    L = size * (W.T @ X - problem.Y + rng.standard_normal((M, 60)))
    assert nt.certify(problem, W, L).dual_bound <= nt.certify(problem, W).objective


def test_structure():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((30, 400))
    W = rng.standard_normal((30, 8))
    W[10:] *= 0.05
    W[:, 6:] *= 0.02
    Y = np.maximum(W.T @ X, 0)
    rows = nt.solve(X, Y, 0.2, penalty="rows").W
    unused = ~(rows != 0).any(1)
    assert unused[10:].sum() >= 10 and not unused[:10].any()
    assert (rows[~unused][:, :6] != 0).all()
    columns = nt.solve(X, Y, 0.2, penalty="columns").W
    assert not columns[:, 6:].any() and columns[:, :6].all()
    plain = nt.solve(X, Y, 0.2).W
    assert (plain != 0).any(1).sum() > (~unused).sum()


def test_low_rank():
    rng = np.random.default_rng(6)
    X = rng.standard_normal((40, 500))
    W = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 20)) + 0.05 * rng.standard_normal((40, 20))
    Y = np.maximum(W.T @ X, 0)
    solution = nt.solve(X, Y, 0.1, penalty="nuclear")
    assert solution.status == nt.Status.SOLVED
    assert np.linalg.matrix_rank(W) == 20 and np.linalg.matrix_rank(solution.W, tol=1e-6) <= 6


def test_smooth_weights():
    # an image layer whose weights are piecewise constant, from few samples
    rng = np.random.default_rng(7)
    truth = np.zeros((8, 8, 3))
    truth[2:6, 2:6] = rng.standard_normal(3)
    W = truth.reshape(64, 3)
    X = rng.standard_normal((64, 50))
    noise = 0.3 * rng.standard_normal((3, 50))
    Y = W.T @ X + noise
    options = {"omega": "linear", "epsilon_abs": np.linalg.norm(noise)}
    smooth = nt.solve(X, Y, penalty=pn.TotalVariation((8, 8), 2.0), **options).W
    plain = nt.solve(X, Y, **options).W
    assert np.linalg.norm(smooth - W) < 0.5 * np.linalg.norm(plain - W)


def test_elastic_net_shares_between_equal_inputs():
    rng = np.random.default_rng(8)
    X = rng.standard_normal((10, 200))
    X[1] = X[0]
    Y = np.maximum(2 * X[:1] + X[2:3], 0)
    W = nt.solve(X, Y, 0.1, penalty=pn.ElasticNet(1.0), gap_tol=1e-6, feas_tol=1e-7).W
    assert W[0, 0] == pytest.approx(W[1, 0], rel=1e-2) and W[0, 0] > 0.5


def test_reweighted_rows():
    problem = random_layer(9).replace(penalty="rows", epsilon=0.3)
    plain = nt.Solver(problem).solve()
    X, Y = problem.X, problem.Y
    found = nt.sparsest(X, Y, 0.3, penalty="rows")
    assert found.status == nt.Status.SOLVED and (found.W != 0).any(1).sum() < (plain.W != 0).any(1).sum()
    again = nt.certify(problem.replace(C=found.C), found.W, found.dual)
    assert again.gap == pytest.approx(found.certificate.gap)


@pytest.mark.parametrize("name", ["columns", "rows", "groups", "blocks", "elastic net"])
def test_rounds_of_any_penalty_that_counts(name):
    problem = random_layer(16, epsilon=0.5)
    found = nt.sparsest(problem.X, problem.Y, 0.5, penalty=PENALTIES[name], rounds=3)
    assert found.status == nt.Status.SOLVED and found.certificate.nnz < N * M
    again = nt.certify(problem.replace(penalty=PENALTIES[name], C=found.C), found.W, found.dual)
    assert again.gap == pytest.approx(found.certificate.gap)


def test_a_target():
    problem = random_layer(10)
    found = nt.solve(problem.X, problem.Y, density=0.5, penalty="rows")
    assert 0 < found.density <= 0.5
    assert (found.W != 0).any(1).sum() == found.certificate.nnz / M


def test_updates_keep_the_answer():
    problem = random_layer(11)
    solver = nt.Solver(problem, gap_tol=1e-5, feas_tol=1e-6)
    solver.solve()
    warm = solver.update(penalty="rows").solve()
    cold = nt.Solver(problem.replace(penalty="rows"), gap_tol=1e-5, feas_tol=1e-6).solve()
    assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=2e-5)
    back = solver.update(penalty=None).solve()
    assert back.certificate.objective == pytest.approx(nt.Solver(problem).solve().certificate.objective, rel=2e-3)
    assert solver.start(warm).update(penalty="rows", epsilon=0.3).solve().status == nt.Status.SOLVED


@pytest.mark.parametrize("name", PENALTIES)
def test_names_and_files(name):
    penalty = PENALTIES[name]
    again = pn.make(penalty.to_dict())
    assert again.to_dict() == penalty.to_dict() and pn.make(penalty) is penalty
    W = np.random.default_rng(0).standard_normal((N, M))
    assert again.value(W, np.ones((1, 1))) == penalty.value(W, np.ones((1, 1)))


@pytest.mark.parametrize("name", PENALTIES)
def test_zero_weights_where_nothing_is_asked(name):
    problem = random_layer(12).replace(epsilon=1.5, penalty=PENALTIES[name])
    solution = nt.Solver(problem).solve()
    assert solution.status == nt.Status.SOLVED and not solution.W.any() and solution.certificate.objective == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"penalty": "lasso"}, ValueError, "penalty must be one of l1, elastic_net"),
        ({"penalty": 3}, TypeError, "penalty must be a nettrim.penalties object or a name; got int"),
        ({"penalty": {"name": "rows", "size": 2}}, ValueError, "penalty rows has no parameter 'size'; it has none"),
        ({"penalty": "elastic_net"}, ValueError, "penalty elastic_net needs ridge, as in 'elastic_net:ridge=0.1'"),
        ({"penalty": {"name": ["rows"]}}, ValueError, "penalty must be one of l1"),
        ({"penalty": "rows", "C": np.ones((N, M)) + np.eye(N, M)}, ValueError, "C must be constant within each group"),
        ({"penalty": "nuclear", "C": np.arange(N)}, ValueError, "C must be one number"),
        ({"penalty": "nuclear", "C": np.eye(N, M)}, ValueError, "C must be the same for all neurons"),
        ({"penalty": pn.TotalVariation((5, 5))}, ValueError, "has 25 entries, X has 16 rows"),
        ({"penalty": pn.TotalVariation((3, 5)), "C": 0.0}, ValueError, "C must be larger than 0 on the grid"),
        ({"penalty": pn.Groups(np.arange(3))}, ValueError, "labels of the penalty must be (16,) or (16, 4)"),
        ({"penalty": pn.KSupport(2, 5)}, ValueError, "blocks of 5 inputs leave 1 of 16 over"),
        ({"penalty": "k_support", "C": np.arange(N)}, ValueError, "C must be constant within each block"),
        ({"penalty": "rows", "method": "working_set"}, ValueError, 'method="working_set" is for the l1 norm'),
    ],
)
def test_what_is_refused(options, error, message):
    problem = random_layer(13)
    with pytest.raises(error) as caught:
        nt.solve(problem.X, problem.Y, 0.1, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pn.ElasticNet(0.0), ValueError, "ridge must be larger than 0"),
        (lambda: pn.ElasticNet("1"), TypeError, "ridge must be a number"),
        (lambda: pn.Groups([0.5, 1]), TypeError, "labels must be integers"),
        (lambda: pn.Groups(np.array([-1, 0])), ValueError, "labels must be at least 0"),
        (lambda: pn.Groups(np.zeros((2, 2, 2), int)), ValueError, "labels must be (N,) or (N, M)"),
        (lambda: pn.KSupport(5, 4), ValueError, "needs 0 < k <= of; got 5 and 4"),
        (lambda: pn.KSupport(2.0), TypeError, "k must be a whole number"),
        (lambda: pn.TotalVariation((0, 3)), ValueError, "shape must be whole numbers of at least 1"),
        (lambda: pn.TotalVariation((3, 3), axes=(2,)), ValueError, "axes must be different ones of 0 to 1"),
        (lambda: pn.TotalVariation((3, 3), -1.0), ValueError, "weight must be larger than 0"),
    ],
)
def test_parameters_that_are_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_k_support_is_l1_for_one_and_l2_for_all():
    W = np.random.default_rng(15).standard_normal((N, M))
    C = np.ones((1, 1))
    assert pn.KSupport(1, 4).value(W, C) == pytest.approx(np.abs(W).sum())
    assert pn.KSupport(4, 4).value(W, C) == pytest.approx(np.sqrt((W.reshape(4, 4, M) ** 2).sum(1)).sum())
    sparse = np.where(np.arange(N)[:, None] % 4 < 2, W, 0)
    assert pn.KSupport(2, 4).value(sparse, C) == pytest.approx(np.sqrt((sparse.reshape(4, 4, M) ** 2).sum(1)).sum())


def test_rounds_need_a_count():
    problem = random_layer(14)
    with pytest.raises(ValueError, match="reweighting needs a penalty that stands for a count; got nuclear"):
        nt.sparsest(problem.X, problem.Y, 0.1, penalty="nuclear")

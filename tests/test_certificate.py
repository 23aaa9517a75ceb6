"""The certificate against plain NumPy, and the lower bound against optima that are known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from helpers import dual_value, mask_of, residuals
from hypothesis import example, given
from hypothesis import strategies as st
from instances import KnownOptimum, known_optimum, random_problem

import nettrim as nt

KINDS = {
    "relu": {},
    "neuronwise": {"neuronwise": True},
    "linear": {"linear": True},
    "linear neuronwise": {"linear": True, "neuronwise": True},
    "bias free": {"weights": "rows"},
    "linear, bias free": {"linear": True, "weights": "rows"},
    "free entries": {"weights": "entries"},
}


@cache
def known(kind: str) -> KnownOptimum:
    return known_optimum(np.random.default_rng(7), 10, 4, 40, kept=0.3, **KINDS[kind])


@pytest.mark.parametrize("bound", ["scalar", "array"])
@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
def test_every_field_by_hand(rng, bound, neuronwise):
    problem = random_problem(rng, 9, 4, 50, bound=bound, weights="entries", neuronwise=neuronwise)
    W = rng.standard_normal((9, 4)) * (rng.random((9, 4)) < 0.6)
    R, excess = residuals(problem, W)
    mask, Z = mask_of(problem), W.T @ problem.X
    size = np.linalg.norm(problem.Y[mask])
    c = nt.certify(problem, W)
    assert c.objective == pytest.approx((problem.C * np.abs(W)).sum(), rel=1e-12)
    assert c.dual_bound == -np.inf
    if neuronwise:
        radius = problem.epsilon / np.sqrt(4)
        norms, sizes = np.linalg.norm(R, axis=1), np.linalg.norm(np.where(mask, problem.Y, 0), axis=1)
        assert c.ball_ratio == pytest.approx((norms / radius).max(), rel=1e-12)
        floors = np.maximum(radius, 0.01 * sizes)
        assert c.ball_violation == pytest.approx((np.maximum(norms - radius, 0) / floors).max(), rel=1e-12)
    else:
        assert c.ball_ratio == pytest.approx(np.linalg.norm(R) / problem.epsilon, rel=1e-12)
        over = max(np.linalg.norm(R) - problem.epsilon, 0)
        assert c.ball_violation == pytest.approx(over / max(problem.epsilon, 0.01 * size), rel=1e-12)
    V = np.broadcast_to(problem.V, mask.shape)
    scale = np.hypot(size, np.linalg.norm(np.minimum(V[~mask], 0)))
    assert c.inequality_violation == pytest.approx(np.linalg.norm(excess) / scale, rel=1e-12)
    assert c.max_violation == pytest.approx(excess.max(), rel=1e-12)
    assert c.rms_violation == pytest.approx(np.sqrt((excess[~mask] ** 2).mean()), rel=1e-12)
    assert c.discrepancy == pytest.approx(np.linalg.norm(R) / size, rel=1e-12)
    assert c.flips == ((problem.Y > 0) & mask & (Z <= 0)).sum() > 0
    assert c.nnz == np.count_nonzero(W)
    assert c.density == pytest.approx(np.count_nonzero(W) / W.size)
    assert c.violation == max(c.ball_violation, c.inequality_violation) > 0


@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
@pytest.mark.parametrize("bound", ["scalar", "array"])
def test_dual_bound_by_hand(rng, bound, neuronwise):
    """Signs enforced, each row scaled into |X L^T| <= C, then the definition; 0 is always a bound."""
    problem = random_problem(rng, 9, 4, 50, bound=bound, weights="columns", neuronwise=neuronwise)
    dual = nt.Solver(problem).solve().dual
    dual = dual + 0.01 * np.abs(dual).max() * rng.standard_normal((4, 50))
    mask, V = mask_of(problem), np.broadcast_to(problem.V, (4, 50))
    L = np.where(mask, dual, np.maximum(dual, 0))
    L[~mask & np.isinf(V)] = 0
    L /= np.maximum((np.abs(problem.X @ L.T) / problem.C).max(0), 1)[:, None]
    expected = dual_value(problem, L)
    assert expected > 0
    c = nt.certify(problem, np.ones((9, 4)), dual)
    if neuronwise:
        assert c.dual_bound >= expected * (1 - 1e-12)
    else:
        assert c.dual_bound == pytest.approx(expected, rel=1e-10)
    assert c.gap == pytest.approx((c.objective - c.dual_bound) / c.objective, rel=1e-12)
    if bound == "scalar":
        scaled = nt.certify(problem, np.ones((9, 4)), 1e3 * L).dual_bound
        tight = L / (np.abs(problem.X @ L.T) / problem.C).max(0)[:, None]
        if not neuronwise:
            assert scaled == pytest.approx(max(dual_value(problem, tight), 0), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimal_multipliers_prove_the_optimum(kind):
    k = known(kind)
    assert nt.certify(k.problem, k.W, k.dual).dual_bound == pytest.approx(k.objective, rel=1e-9)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 0.1, 1, 1e3]))
@example("relu", 0, 0.1)
@example("bias free", 0, 1e-3)
@example("linear, bias free", 1, 0.1)
@example("free entries", 2, 1.0)
def test_no_multipliers_give_a_bound_above_the_optimum(kind, seed, size):
    k = known(kind)
    rng = np.random.default_rng(seed)
    dual = k.dual * rng.choice([0, 0.5, 1, 1, 2], (k.dual.shape[0], 1))
    dual = dual + size * np.abs(k.dual).max() * rng.standard_normal(dual.shape)
    bound = nt.certify(k.problem, k.W, dual).dual_bound
    assert 0 <= bound <= k.objective * (1 + 1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0, 10))
@example(0, 1.0)
def test_multipliers_of_random_layers_stay_below_cvxpy(seed, size):
    problem, optimum = cvxpy_optimum()
    rng = np.random.default_rng(seed)
    dual = size * rng.standard_normal(problem.Y.shape) - rng.random() * problem.Y
    assert nt.certify(problem, np.zeros((8, 3)), dual).dual_bound <= optimum * (1 + 1e-7)


@cache
def cvxpy_optimum():
    from nettrim import reference

    problem = random_problem(np.random.default_rng(8), 8, 3, 30, bound="array", weights="rows")
    return problem, reference.solve(problem).certificate.objective


@pytest.mark.parametrize("kind", ["bias free", "linear, bias free", "free entries"])
def test_unpenalised_inputs_are_balanced_by_a_shift(kind):
    """Multipliers slightly off X L^T = 0 at C = 0 still prove nearly the optimum."""
    k = known(kind)
    noise = 1e-4 * np.abs(k.dual).max() * np.random.default_rng(0).standard_normal(k.dual.shape)
    assert nt.certify(k.problem, k.W, k.dual + noise).dual_bound >= 0.95 * k.objective


@pytest.mark.parametrize("kind", ["bias free", "linear, bias free"])
def test_multipliers_of_the_penalised_problem_prove_no_more_than_the_optimum(kind):
    """With the free inputs penalised the optimum is larger; its multipliers claim that, unless balanced."""
    k = known(kind)
    penalised = nt.Solver(k.problem.replace(C=np.where(k.problem.C > 0, k.problem.C, 1e3)), gap_tol=1e-5).solve()
    assert penalised.status == nt.Status.SOLVED
    claimed = penalised.certificate.dual_bound
    assert claimed > 1.2 * k.objective
    assert nt.certify(k.problem, k.W, penalised.dual).dual_bound <= k.objective * (1 + 1e-9)


def test_signs_off_omega_are_enforced(rng):
    k = known("relu")
    mask = mask_of(k.problem)
    spoilt = np.where(~mask & (k.multiplier <= 0), -rng.random(mask.shape), k.multiplier)
    assert nt.certify(k.problem, k.W, spoilt).dual_bound == pytest.approx(k.objective, rel=1e-9)


@pytest.mark.parametrize("kind", ["linear", "linear neuronwise"])
def test_compact_multipliers_stand_for_samples(kind, rng):
    """[D; mu] proves what L = D^T X - diag(mu) Y proves."""
    k = known(kind)
    assert k.problem.compact
    dual = k.dual + 0.05 * np.abs(k.dual).max() * rng.standard_normal(k.dual.shape)
    L = dual[:-1].T @ k.problem.X - dual[-1][:, None] * k.problem.Y
    L /= np.maximum(np.abs(k.problem.X @ L.T).max(0), 1)[:, None]
    bound = nt.certify(k.problem, k.W, dual).dual_bound
    if k.problem.neuronwise:
        rows = -(L * k.problem.Y).sum(1) - k.problem.radii * np.linalg.norm(L, axis=1)
        assert bound == pytest.approx(np.maximum(rows, 0).sum(), rel=1e-8)
    else:
        assert bound == pytest.approx(max(dual_value(k.problem, L), 0), rel=1e-8)


def test_compact_residuals_are_those_of_the_samples(rng):
    k = known("linear")
    W = rng.standard_normal(k.W.shape)
    R, _ = residuals(k.problem, W)
    c = nt.certify(k.problem, W)
    assert c.ball_ratio == pytest.approx(np.linalg.norm(R) / k.problem.epsilon, rel=1e-10)
    assert c.discrepancy == pytest.approx(np.linalg.norm(R) / np.linalg.norm(k.problem.Y), rel=1e-10)


def test_many_chunks_equal_one(rng, monkeypatch):
    problem = random_problem(rng, 9, 4, 53, bound="array", weights="rows")
    W, dual = rng.standard_normal((9, 4)), rng.standard_normal((4, 53))
    whole = nt.certify(problem, W, dual).to_dict()
    monkeypatch.setattr(nt.solution, "_CHUNK_BYTES", 8 * (9 + 4 * 4) * 7)
    for name, value in nt.certify(problem, W, dual).to_dict().items():
        assert value == pytest.approx(whole[name], rel=1e-10), name


def test_float32_weights_are_judged_in_float64(rng):
    problem = random_problem(rng, 9, 4, 50, dtype=np.float32)
    W = rng.standard_normal((9, 4)).astype(np.float32)
    R, _ = residuals(problem, W)
    assert nt.certify(problem, W).ball_ratio == pytest.approx(np.linalg.norm(R) / problem.epsilon, rel=1e-12)


def test_a_missed_radius_of_zero(rng):
    problem = random_problem(rng, 6, 3, 20, epsilon=0.0)
    c = nt.certify(problem, np.zeros((6, 3)))
    assert c.ball_ratio == np.inf
    assert c.ball_violation == pytest.approx(100)


def test_wrong_shapes_and_values(rng):
    problem = random_problem(rng, 6, 3, 20)
    linear = random_problem(rng, 6, 3, 20, linear=True)
    W = np.zeros((6, 3))
    for wrong in (W.T, W[:5], W[:, 0]):
        with pytest.raises(ValueError, match="W must be 6 x 3"):
            nt.certify(problem, wrong)
    with pytest.raises(ValueError, match="W contains NaN or inf"):
        nt.certify(problem, W * np.nan)
    with pytest.raises(ValueError, match=r"dual must have the shape \(3, 20\)"):
        nt.certify(problem, W, np.zeros((20, 3)))
    with pytest.raises(ValueError, match=r"dual must have the shape \(7, 3\)"):
        nt.certify(linear, W, np.zeros((3, 20)))
    with pytest.raises(ValueError, match="dual contains NaN or inf"):
        nt.certify(problem, W, np.full((3, 20), np.inf))
    with pytest.raises(ValueError, match=r"ray must have the shape \(3, 20\)"):
        nt.verify_ray(problem, np.zeros((20, 3)))


def test_holds_compares_gap_and_violation(rng):
    k = known("relu")
    c = nt.certify(k.problem, k.W, k.dual)
    assert c.holds(1e-9, 1e-9)
    far = nt.certify(k.problem, 2 * k.W, k.dual)
    assert not far.holds(1e-3, 1)
    assert not far.holds(1, 1e-4)
    assert not nt.certify(k.problem, k.W).holds(0.999, 1)


def test_certificate_becomes_plain_numbers():
    import json

    k = known("relu")
    c = nt.certify(k.problem, k.W, k.dual)
    assert json.loads(json.dumps(c.to_dict()))["objective"] == c.objective

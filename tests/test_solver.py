"""Statuses, updates and warm starts, determinism, threads, interruption, settings."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from helpers import solve_tightly
from instances import known_optimum, random_problem
from threadpoolctl import threadpool_info, threadpool_limits

import nettrim as nt

KINDS = {
    "relu": {},
    "linear": {"linear": True},
    "neuronwise": {"neuronwise": True},
    "linear neuronwise": {"linear": True, "neuronwise": True},
    "bias free": {"weights": "rows"},
    "linear, bias free": {"linear": True, "weights": "rows"},
    "weighted entries": {"weights": "entries"},
    "bounds": {"bound": "array"},
}
SHAPES = {"P > N": (20, 5, 120), "P < N": (24, 4, 15), "P = N": (16, 3, 16), "one neuron": (10, 1, 60)}


def problem_of(kind="relu", shape="P > N", seed=0, **options):
    return random_problem(np.random.default_rng(seed), *SHAPES[shape], **(KINDS[kind] | options))


@pytest.fixture
def sigint():
    """Python's own handler for SIGINT, whatever the test run was started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# the grid


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_dtype_and_kind(backend, dtype, method, kind, shape):
    """`solved` is what the recomputed certificate says, with the returned W in its own dtype."""
    problem = problem_of(kind, shape, dtype=dtype)
    solution = nt.Solver(problem, backend=backend, method=method).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    assert solution.W.dtype == dtype
    again = nt.certify(problem, solution.W, solution.dual)
    assert again == solution.certificate
    assert again.holds(1e-3, 1e-4)
    assert solution.density == np.count_nonzero(solution.W) / solution.W.size < 1
    assert solution.settings["backend"] == backend


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_gap_1e_6_in_float64(backend, method, kind, shape):
    solution = solve_tightly(problem_of(kind, shape), backend=backend, method=method)
    assert solution.certificate.holds(1e-6, 1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-3, 0.9])
@pytest.mark.parametrize("kind", ["relu", "linear", "bounds", "bias free"])
def test_gap_1e_6_at_other_radii(kind, epsilon, method):
    solution = nt.Solver(problem_of(kind, epsilon=epsilon), gap_tol=1e-6, method=method).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    assert solution.certificate.holds(1e-6, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree(kind, method):
    """The same iterates up to rounding, hence the same answer."""
    problem = problem_of(kind)
    one, other = (solve_tightly(problem, backend=b, method=method) for b in ("numpy", "numba"))
    assert one.certificate.objective == pytest.approx(other.certificate.objective, rel=2e-6)
    np.testing.assert_allclose(one.W, other.W, atol=1e-3 * np.abs(one.W).max())


# warm starts and the factor


def test_a_second_solve_of_the_same_problem_is_short():
    solver = nt.Solver(
        known_optimum(np.random.default_rng(0), 60, 8, 200).problem, polish=False, gap_tol=1e-5, method="admm"
    )
    first, second = solver.solve(), solver.solve()
    assert second.status == nt.Status.SOLVED
    assert second.iterations < first.iterations / 4


@pytest.mark.parametrize("kind", ["relu", "linear", "neuronwise"])
@pytest.mark.parametrize("change", [{"epsilon": 0.11}, {"epsilon": 0.09}, {"C": np.linspace(0.98, 1.02, 20)}])
def test_warm_starts_need_fewer_iterations(kind, change):
    problem = problem_of(kind)
    options = {"polish": False, "gap_tol": 1e-4, "check_every": 5, "method": "admm"}
    solver = nt.Solver(problem, **options)
    solver.solve()
    warm = solver.update(**change).solve()
    cold = nt.Solver(problem.replace(**change), **options).solve()
    assert warm.status == cold.status == nt.Status.SOLVED
    assert warm.iterations < cold.iterations
    assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=1e-3)


def test_a_path_of_radii_costs_less_than_its_points_alone():
    problem = problem_of()
    epsilons = [0.05, 0.06, 0.07, 0.08, 0.1]
    solver = nt.Solver(problem, polish=False, method="admm")
    warm = [solver.update(epsilon=e).solve() for e in epsilons]
    cold = [nt.Solver(problem.replace(epsilon=e), polish=False, method="admm").solve() for e in epsilons]
    assert {s.status for s in warm + cold} == {nt.Status.SOLVED}
    assert sum(s.iterations for s in warm) < sum(s.iterations for s in cold)


@pytest.mark.parametrize("kind", ["relu", "linear"])
def test_the_factor_survives_every_change_but_X(kind):
    problem = problem_of(kind)
    solver = nt.Solver(problem, adapt=False, method="admm")
    solver.solve()
    factor = solver._factor
    assert factor.computed == 1
    changes = [{"epsilon": 0.2}, {"C": 2.0}, {"C": np.linspace(1, 2, 20)}, {"neuronwise": True}]
    if kind == "relu":
        changes += [{"V": 0.1}, {"Y": 1.1 * problem.Y}, {"omega": problem.Y > 0.01}]
    for change in changes:
        assert solver.update(**change).solve().status == nt.Status.SOLVED, change
        assert solver._factor is factor
    assert factor.computed == 1
    solver.update(X=1.01 * problem.X).solve()
    assert solver._factor is not factor


def test_adaptation_of_the_penalties_reuses_factors():
    """r moves on a grid, so a second solve finds the inverse it ended with."""
    solver = nt.Solver(problem_of(), method="admm")
    solver.solve()
    before = solver._factor.computed
    solver.solve()
    assert solver._factor.computed <= before + 1


def test_a_change_of_shape_starts_afresh():
    solver = nt.Solver(problem_of())
    solver.solve()
    other = problem_of(seed=5)
    solver.update(Y=other.Y[:2], V=0.0, C=1.0)
    expected = nt.Solver(nt.Problem(solver.problem.X, other.Y[:2], epsilon_abs=solver.problem.epsilon)).solve()
    assert solver.solve().status == expected.status
    big = problem_of("relu", "P > N", seed=6)
    X, Y = np.hstack([big.X, big.X]), np.hstack([big.Y, big.Y])
    solution = solver.update(X=X, Y=Y, epsilon=0.1).solve()
    assert solution.status == nt.Status.SOLVED
    alone = nt.Solver(nt.Problem(X, Y, 0.1)).solve()
    np.testing.assert_array_equal(solution.W, alone.W)


def test_a_change_of_dtype_starts_afresh():
    solver = nt.Solver(problem_of())
    assert solver.solve().W.dtype == np.float64
    solution = solver.update(dtype=np.float32).solve()
    assert solution.status == nt.Status.SOLVED
    assert solution.W.dtype == np.float32


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
def test_from_relu_to_linear_and_back(linear):
    problem = problem_of("linear")
    solver = nt.Solver(problem if linear else problem.replace(omega=problem.Y > 0))
    for omega in ("linear", problem.Y > 0, "linear"):
        solution = solver.update(omega=omega, epsilon=0.1).solve()
        assert solution.status == nt.Status.SOLVED
        cold = nt.Solver(solver.problem).solve()
        assert solution.certificate.objective == pytest.approx(cold.certificate.objective, rel=3e-3)


# statuses


def recomputed(problem, solution):
    assert nt.certify(problem, solution.W, solution.dual) == solution.certificate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [1, 2, 19, 20, 21])
def test_max_iterations(kind, iterations):
    problem = problem_of(kind)
    solution = nt.Solver(problem, max_iterations=iterations, gap_tol=1e-9, polish=False, method="admm").solve()
    assert solution.status == nt.Status.MAX_ITERATIONS
    assert solution.iterations == iterations
    assert "max_iterations" in solution.message
    recomputed(problem, solution)
    assert not solution.certificate.holds(1e-8, 1e-3)


def test_time_limit(method):
    problem = problem_of()
    solver = nt.Solver(problem, time_limit=0.0, gap_tol=1e-9, method=method)
    solution = solver.solve()
    assert solution.status == nt.Status.TIME_LIMIT
    assert solution.iterations == 1
    assert "time_limit" in solution.message
    recomputed(problem, solution)


def test_solved_inaccurate():
    """Within ten times the tolerances at the limit, but not within them."""
    problem = problem_of()
    history = nt.Solver(problem, gap_tol=1e-7, polish=False, method="admm").solve().history
    enough = next(row["iteration"] for row in history if 0 < row["gap"] <= 1e-4)
    options = {"max_iterations": enough, "polish": False, "feas_tol": 0.5, "method": "admm"}
    gap = nt.Solver(problem, gap_tol=1e-9, **options).solve().certificate.gap
    solution = nt.Solver(problem, gap_tol=gap / 3, **options).solve()
    assert solution.status == nt.Status.SOLVED_INACCURATE
    assert "within ten times" in solution.message
    assert solution.certificate.gap == gap
    recomputed(problem, solution)


def test_a_callback_may_stop():
    seen = []

    def callback(row):
        seen.append(row)
        return len(seen) == 3

    problem = problem_of()
    solver = nt.Solver(problem, callback=callback, gap_tol=1e-9, polish=False, check_every=10, method="admm")
    solution = solver.solve()
    assert solution.status == nt.Status.INTERRUPTED
    assert solution.iterations == 30
    assert [row["iteration"] for row in seen] == [10, 20, 30]
    assert all(set(row) >= {"iteration", "objective", "dual_bound", "gap", "seconds"} for row in seen)
    assert solution.history == seen
    recomputed(problem, solution)


def test_the_best_weights_are_returned_not_the_last():
    """The state is spoilt just before the stop: the weights of the check before it are better, and come back."""

    def callback(row):
        if row["iteration"] == 80:
            solver._state.T2 += 10 * np.abs(solver._state.T2).max()
        return row["iteration"] == 100

    problem = problem_of()
    solver = nt.Solver(problem, callback=callback, gap_tol=1e-9, polish=False, method="admm")
    solution = solver.solve()
    assert solution.status == nt.Status.INTERRUPTED
    before, last = solution.history[-2:]
    assert abs(last["gap"]) > 10 * abs(before["gap"])
    assert solution.certificate.objective == pytest.approx(before["objective"], rel=1e-9)
    recomputed(problem, solution)


def test_callback_rows_are_the_certificate():
    """Every check is seen, also the last; there the loop's estimates are what the certificate says of the iterate."""
    problem = problem_of()
    rows = []
    solution = nt.Solver(
        problem, callback=rows.append, max_iterations=60, gap_tol=1e-9, polish=False, method="admm"
    ).solve()
    assert rows == solution.history
    assert [row["iteration"] for row in rows] == [20, 40, 60]
    assert rows[-1]["objective"] == pytest.approx(solution.certificate.objective, rel=1e-9)
    assert rows[-1]["dual_bound"] == pytest.approx(solution.certificate.dual_bound, rel=1e-6)
    assert 0 <= rows[0]["seconds"] <= rows[-1]["seconds"] <= solution.seconds["total"]


def test_an_exception_in_the_callback_comes_through(method):
    def callback(row):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        nt.Solver(problem_of(), callback=callback, gap_tol=1e-9, method=method).solve()


def test_ctrl_c_keeps_the_best_state(sigint):
    problem = problem_of()
    sent = []

    def callback(row):
        if not sent and abs(row["gap"]) < 1e-2:
            sent.append(row["iteration"])
            os.kill(os.getpid(), signal.SIGINT)

    solver = nt.Solver(problem, callback=callback, gap_tol=1e-8, polish=False, method="admm")
    solution = solver.solve()
    assert solution.status == nt.Status.INTERRUPTED
    assert sent[0] <= solution.iterations <= sent[0] + 2
    assert abs(solution.certificate.gap) < 0.1
    assert "goes on from here" in solution.message
    recomputed(problem, solution)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # and it does go on, from there
    rest = solver.solve()
    assert rest.status == nt.Status.SOLVED
    assert rest.history[0]["objective"] == pytest.approx(solution.certificate.objective, rel=0.05)


def test_a_second_ctrl_c_stops_at_once(sigint):
    def callback(row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        nt.Solver(problem_of(), callback=callback, gap_tol=1e-9).solve()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_application_is_left_alone(sigint):
    received = []
    signal.signal(signal.SIGINT, lambda *_: received.append(1))
    handler = signal.getsignal(signal.SIGINT)

    def callback(row):
        if not received:
            os.kill(os.getpid(), signal.SIGINT)

    solution = nt.Solver(problem_of(), callback=callback).solve()
    assert solution.status == nt.Status.SOLVED
    assert received == [1]
    assert signal.getsignal(signal.SIGINT) is handler


def test_solving_outside_the_main_thread(backend, method):
    problem, found = problem_of(), []
    threads = [
        threading.Thread(target=lambda: found.append(nt.Solver(problem, backend=backend, method=method).solve()))
        for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [s.status for s in found] == [nt.Status.SOLVED] * 2
    np.testing.assert_allclose(found[0].W, found[1].W, atol=1e-9)


# determinism and threads


@pytest.mark.parametrize("kind", ["relu", "linear", "bounds"])
def test_equal_inputs_give_equal_bits(backend, dtype, kind, method):
    one, other = (
        nt.Solver(problem_of(kind, dtype=dtype), backend=backend, n_threads=2, method=method).solve() for _ in "ab"
    )
    np.testing.assert_array_equal(one.W, other.W)
    np.testing.assert_array_equal(one.dual, other.dual)
    assert one.certificate == other.certificate
    assert one.iterations == other.iterations


def test_equal_bits_at_a_size_that_is_split_over_threads(method):
    problem = known_optimum(np.random.default_rng(1), 100, 12, 12_000, np.float32).problem
    one, other = (nt.Solver(problem, n_threads=2, max_iterations=40, gap_tol=1e-9, method=method).solve() for _ in "ab")
    np.testing.assert_array_equal(one.W, other.W)
    np.testing.assert_array_equal(one.dual, other.dual)


def test_the_number_of_threads_changes_rounding_only():
    problem = known_optimum(np.random.default_rng(1), 100, 12, 12_000).problem
    options = {"max_iterations": 60, "gap_tol": 1e-12, "polish": False, "method": "admm"}
    one, two = (nt.Solver(problem, n_threads=n, **options).solve() for n in (1, 2))
    assert one.iterations == two.iterations
    np.testing.assert_allclose(one.W, two.W, atol=1e-9 * np.abs(one.W).max())
    for a, b in zip(one.history, two.history, strict=True):
        assert a["objective"] == pytest.approx(b["objective"], rel=1e-9)


def blas_threads() -> dict[str, int]:
    """Threads of NumPy's and SciPy's BLAS; another package's may be built for one thread."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return {p["filepath"]: p["num_threads"] for p in pools if "numpy" in p["filepath"] or "scipy" in p["filepath"]}


@pytest.mark.parametrize("before", [1, 2])
def test_the_thread_count_is_set_and_restored(backend, before):
    inside = []
    solver = nt.Solver(
        problem_of(),
        n_threads=3 - before,
        backend=backend,
        callback=lambda row: inside.append(blas_threads()),
        gap_tol=1e-9,
    )
    with threadpool_limits(before):
        outside = threadpool_info()
        solver.solve()
        assert threadpool_info() == outside
    assert inside
    assert all(set(counts.values()) == {3 - before} for counts in inside)


def test_the_thread_count_is_restored_after_an_exception():
    def callback(row):
        raise RuntimeError

    with threadpool_limits(2):
        before = threadpool_info()
        with pytest.raises(RuntimeError):
            nt.Solver(problem_of(), n_threads=1, callback=callback, gap_tol=1e-9).solve()
        assert threadpool_info() == before


# the solution


@pytest.mark.parametrize("kind", ["relu", "linear", "weighted entries"])
def test_weights_are_exactly_zero(kind):
    known = known_optimum(np.random.default_rng(2), 50, 6, 200, **KINDS[kind])
    W = nt.Solver(known.problem).solve().W
    penalised = np.broadcast_to(known.problem.C > 0, W.shape)
    assert np.count_nonzero(W[penalised]) <= 1.5 * np.count_nonzero(known.W[penalised])
    assert (W[penalised] == 0).mean() > 0.8


def test_the_tolerance_of_feasibility_is_met():
    for feas_tol in (1e-2, 1e-4, 1e-6, 1e-8):
        solution = nt.Solver(problem_of(), feas_tol=feas_tol).solve()
        assert solution.status == nt.Status.SOLVED
        assert solution.certificate.violation <= feas_tol


@pytest.mark.parametrize(("method", "unit"), [("admm", "iteration"), ("working_set", "round")])
def test_verbose_prints_a_line_per_check(capsys, method, unit):
    solution = nt.Solver(problem_of(), verbose=True, gap_tol=1e-6, method=method).solve()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [unit, "objective", "dual", "bound", "gap", "seconds"]
    assert len(lines) == 2 + len(solution.history)
    assert lines[-1].startswith("solved: gap")
    assert [int(line.split()[0]) for line in lines[1:-1]] == [row["iteration"] for row in solution.history]
    nt.Solver(problem_of()).solve()
    assert capsys.readouterr().out == ""


def test_solution_in_words_and_json():
    import json

    solution = nt.Solver(problem_of()).solve()
    assert "Solution(solved, kept" in repr(solution)
    record = json.loads(json.dumps(solution.to_dict()))
    assert record["status"] == "solved"
    assert record["certificate"]["gap"] == solution.certificate.gap
    assert record["settings"]["gap_tol"] == 1e-3
    assert set(record["seconds"]) >= {"setup", "iterate", "certify", "total"}
    assert "relu, N=20, M=5, P=120" in repr(problem_of())
    assert "linear" in repr(problem_of("linear"))


def test_neuronwise_balls_are_met_one_by_one():
    problem = problem_of("neuronwise")
    W = solve_tightly(problem).W
    norms = np.linalg.norm(np.where(problem.mask, W.T @ problem.X - problem.Y, 0), axis=1)
    assert (norms <= problem.epsilon / np.sqrt(problem.M) * (1 + 1e-6)).all()


# settings


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"gap_tl": 1e-3}, TypeError, "unknown setting 'gap_tl'; did you mean gap_tol"),
        ({"zzzz": 1}, TypeError, "known: method"),
        ({"gap_tol": 0.0}, ValueError, "gap_tol"),
        ({"gap_tol": 1.0}, ValueError, "gap_tol"),
        ({"gap_tol": -1e-3}, ValueError, "gap_tol"),
        ({"gap_tol": float("nan")}, ValueError, "gap_tol"),
        ({"gap_tol": "1e-3"}, TypeError, "gap_tol"),
        ({"feas_tol": True}, TypeError, "feas_tol"),
        ({"relaxation": 2.0}, ValueError, "relaxation"),
        ({"relaxation": 0}, ValueError, "relaxation"),
        ({"time_limit": -1}, ValueError, "time_limit"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"max_iterations": 10.0}, TypeError, "max_iterations"),
        ({"check_every": 0}, ValueError, "check_every"),
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"n_threads": 1.5}, TypeError, "n_threads"),
        ({"adapt": 1}, TypeError, "adapt"),
        ({"polish": None}, TypeError, "polish"),
        ({"verbose": "yes"}, TypeError, "verbose"),
        ({"callback": 3}, TypeError, "callback"),
        ({"method": "simplex"}, ValueError, "method must be one of auto, admm"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, numpy, numba"),
    ],
)
def test_settings_that_are_refused(values, error, match):
    with pytest.raises(error, match=match):
        nt.Settings.make(**values)
    with pytest.raises(error, match=match):
        nt.Solver(problem_of(), **values)


def test_settings_are_frozen_and_plain():
    import dataclasses
    import json

    settings = nt.Settings(gap_tol=1e-5, callback=print)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.gap_tol = 1.0
    assert json.loads(json.dumps(settings.to_dict()))["gap_tol"] == 1e-5
    assert "callback" not in settings.to_dict()
    assert set(nt.Settings.names()) == set(settings.to_dict()) | {"callback"}


def test_a_solver_takes_settings_or_keywords():
    problem = problem_of()
    assert nt.Solver(problem, nt.Settings(gap_tol=1e-5)).settings.gap_tol == 1e-5
    with pytest.raises(TypeError, match="not both"):
        nt.Solver(problem, nt.Settings(), gap_tol=1e-5)
    with pytest.raises(TypeError, match="settings must be"):
        nt.Solver(problem, {"gap_tol": 1e-5})
    with pytest.raises(TypeError, match="problem must be"):
        nt.Solver(problem.X)


@pytest.mark.parametrize(
    "options", [{"adapt": False}, {"relaxation": 1.0}, {"relaxation": 1.5}, {"check_every": 1}, {"check_every": 7}]
)
def test_every_way_of_iterating_arrives(options):
    problem = problem_of()
    solution = nt.Solver(problem, method="admm", **options).solve()
    assert solution.status == nt.Status.SOLVED
    best = solve_tightly(problem).certificate.objective
    assert solution.certificate.objective == pytest.approx(best, rel=3e-3)

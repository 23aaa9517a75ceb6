"""Samples that exceed the device's memory: the numbers are those of all at once, and copies wait in order."""

from __future__ import annotations

from collections import defaultdict

import cuda_stand_in
import numpy as np
import pytest
from cuda_timeline import Race, Timeline
from hypothesis import example, given
from hypothesis import strategies as st
from instances import KINDS, infeasible_with_ray, random_problem
from test_cuda import REQUIRED, gpu_missing

import nettrim as nt
from nettrim import backends, memory, streamed
from nettrim.backends import cupy_
from nettrim.cli import main
from nettrim.operators import Dense
from nettrim.samples import Resident

N, M, P = 7, 5, 230


@pytest.fixture(autouse=True)
def copies_of_the_host_are_seen(request, monkeypatch):
    """By the timeline of the stand-in: what the host copies to page-locked memory is a step of its own."""
    if "cupy" in request.fixturenames:
        timeline, copy = request.getfixturevalue("cupy").cuda.timeline, streamed.Streamed._copy

        def seen(self, to, source):
            timeline.access(Timeline.HOST, writes=[to.ctypes.data])
            copy(self, to, source)

        monkeypatch.setattr(streamed.Streamed, "_copy", seen)


def arrays(rng, dtype, constant):
    X, Y = rng.standard_normal((N, P)).astype(dtype), rng.standard_normal((M, P)).astype(dtype)
    V = np.full((1, 1), 0.3, dtype) if constant else np.abs(rng.standard_normal((M, P))).astype(dtype)
    return X, np.maximum(Y, 0), Y > 0, V


def both(be, rng, dtype, constant, kept, slots=3, threads=1, width=32):
    X, Y, mask, V = arrays(rng, dtype, constant)
    put = (be.rowwise(a, a.dtype) for a in (Y, mask, V))
    whole = Resident(Dense(X, be, dtype), *put, be)
    return whole, streamed.Streamed(X, Y, mask, V, be, dtype, kept, width, slots, threads)


def fill(be, samples, values):
    """A state of these values."""
    T = samples.state()
    if isinstance(T, streamed.Split):
        for part, s in zip(T.parts, samples._slices, strict=True):
            part[...] = be.asarray(values[:, s].copy(), part.dtype) if be.on_host else part * 0
            if not be.on_host:
                np.copyto(np.asarray(part).view(np.ndarray), values[:, s])
        return T
    return be.asarray(values.copy(), values.dtype)


LAYOUTS = [(0, 3, 1), (0, 1, 1), (64, 2, 1), (160, 3, 2), (224, 3, 1)]


@pytest.mark.parametrize("constant", [True, False], ids=["one bound", "bounds"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("device", ["numpy", "numba", "cupy"])
def test_every_pass_is_that_of_all_samples_at_once(device, layout, constant, dtype, rng, request, monkeypatch):
    if device == "cupy":
        request.getfixturevalue("cupy")
    monkeypatch.setattr(streamed, "THREAD_BYTES", 64)
    be, (kept, slots, threads) = backends.get(device), layout
    whole, parts = both(be, rng, dtype, constant, kept, slots, threads)
    values = rng.standard_normal((M, P)).astype(dtype)
    W, F = (be.asarray(rng.standard_normal((N, M)).astype(dtype), dtype) for _ in range(2))
    close = {"rtol": 1e-11, "atol": 1e-11} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-5}

    def same(a, b):
        a, b = (x if type(x) is np.ndarray else be.to_host(x) for x in (a, b))
        np.testing.assert_allclose(a, b, **close)

    same(whole.sizes(), parts.sizes())
    same(whole.target_product(), parts.target_product())
    np.testing.assert_allclose(whole.operator.gram(), parts.gram(), rtol=1e-12, atol=1e-12)
    same(whole.violations(W), parts.violations(W))
    A, B = fill(be, whole, values), fill(be, parts, values)
    scale = be.asarray(np.linspace(0.2, 1, M).astype(dtype), dtype)
    same(whole.squares(A), parts.squares(B))
    for sums in (True, False):
        (R, r), (S, s) = (x.project(T, scale, 1.7, sums) for x, T in ((whole, A), (parts, B)))
        same(R, S)
        if sums:
            same(r, s)
        else:
            assert r is None and s is None
    same(whole.advance(A, F), parts.advance(B, F))
    (moved, rows), (moved2, rows2) = (x.measure(T, W, F, scale) for x, T in ((whole, A), (parts, B)))
    assert moved == pytest.approx(moved2, rel=1e-5)
    same(rows, rows2)
    same(whole.rescale(A, W, 0.6), parts.rescale(B, W, 0.6))
    np.testing.assert_allclose(whole.to_host(A), parts.to_host(B), **close)
    assert parts.fits(B) and not parts.fits(A) and not whole.fits(B)


def test_a_state_of_another_layout_is_refused(rng):
    be = backends.get("numpy")
    _, one = both(be, rng, np.float64, True, 64)
    _, other = both(be, rng, np.float64, True, 96)
    assert not other.fits(one.state())


@pytest.mark.parametrize("kept", [33, 256, -32])
def test_wrong_layouts(rng, kept):
    with pytest.raises(ValueError, match="kept"):
        both(backends.get("numpy"), rng, np.float64, True, kept)


# the order of copies and work


def forget_to_wait(monkeypatch, what):
    """Make one of the transfers' waits do nothing."""
    c = cupy_.CudaTransfers
    if what in ("arrived", "reusable", "drain"):
        monkeypatch.setattr(c, what, lambda self, *_: None)
        return
    if what == "used after zeros":
        count, used = iter(range(100)), c.used
        # the first ones are those of the buffers
        monkeypatch.setattr(c, "used", lambda self, slot: None if next(count, 100) < 2 else used(self, slot))
        return
    original = {"send": c.send, "receive": c.receive}[what.split()[0]]
    late = {"send before used": "_used", "send before left": "_left", "receive before used": "_used"}.get(what)

    def changed(self, *arguments):
        slot = arguments[0]
        events = getattr(self, late)
        kept, events[slot] = events[slot], self._cp.cuda.Event()
        original(self, *arguments)
        events[slot] = kept
        return None

    monkeypatch.setattr(c, what.split()[0], changed)


def work(parts, be, rng):
    T = parts.state()
    W, scale = be.asarray(rng.standard_normal((N, M)), np.float64), be.asarray(np.full(M, 0.5), np.float64)
    for _ in range(2):
        parts.violations(W)
        parts.project(T, scale, 1.7, True)
        parts.advance(T, W)
    # the host reads what was received
    timeline = be.cp.cuda.timeline
    parts.drain()
    timeline.access(Timeline.HOST, reads=[T.parts[i].ctypes.data for i in parts._streamed])


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_all_copies_and_work_are_ordered(cupy, rng, slots):
    be = backends.get("cupy")
    _, parts = both(be, rng, np.float64, True, 64, slots)
    work(parts, be, rng)
    counts = defaultdict(int, {str(who): n for who, n in cupy.cuda.timeline.count.items()})
    assert min(counts["stream 0"], counts["stream 1"], counts["stream 2"], counts["host"]) > 10


@pytest.mark.parametrize(
    "forgotten",
    ["arrived", "reusable", "used after zeros", "send before used", "send before left", "receive before used", "drain"],
)
def test_each_wait_is_needed(cupy, rng, monkeypatch, forgotten):
    """A forgotten wait is found: otherwise the test above would prove little."""
    forget_to_wait(monkeypatch, forgotten)
    be = backends.get("cupy")
    with pytest.raises(Race):
        _, parts = both(be, rng, np.float64, True, 64, 2)
        work(parts, be, rng)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_copy_outlives_an_interrupted_sweep(cupy, rng, error):
    be = backends.get("cupy")
    _, parts = both(be, rng, np.float64, True, 64)
    count = iter(range(100))

    def broken(chunk):
        if next(count) == 3:
            raise error

    with pytest.raises(error):
        parts._sweep(broken, "X", "Y", T=parts.state(), write=True)
    timeline = cupy.cuda.timeline
    for who, clock in list(timeline.clocks.items()):
        assert clock.get(who, 0) <= timeline.clocks[Timeline.HOST].get(who, 0)


# whole solves

LITTLE = 90_000


def large(kind="relu", **options):
    return random_problem(np.random.default_rng(4), 12, 5, 400, **KINDS.get(kind, {}), **options)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "linear"])
def test_solve(cupy, kind):
    """The same answer as with all samples on the device."""
    problem = large(kind)
    solver = nt.Solver(problem, backend="cupy", device_memory=LITTLE)
    solution = solver.solve()
    assert solver._plan.streamed and solver._plan.kept > 0
    whole = nt.Solver(problem, backend="cupy").solve()
    assert solution.iterations == whole.iterations
    assert solution.status == whole.status == nt.Status.SOLVED
    assert solution.certificate.objective == pytest.approx(whole.certificate.objective, rel=1e-6)
    assert nt.certify(problem, solution.W, solution.dual) == solution.certificate


@pytest.mark.parametrize("shape", [(12, 3, 7, 6), (2, 6, 5, 5)], ids=["many samples", "few samples"])
def test_convolution(cupy, shape):
    """Its samples come in chunks, even if all of them fit."""
    rng = np.random.default_rng(0)
    X = nt.Convolution(rng.standard_normal(shape), 3, padding=1)
    W = rng.standard_normal((X.shape[0], 4)) ** 3
    problem = nt.Problem(X, np.maximum(W.T @ X[:, :], 0), 0.1)
    solver = nt.Solver(problem, backend="cupy")
    solution, plain = solver.solve(), nt.Solver(problem, backend="numpy", method="admm", polish=False).solve()
    assert solver._plan.streamed
    assert solution.status == plain.status == nt.Status.SOLVED
    assert solution.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-5)


def test_warm_start(cupy):
    solver = nt.Solver(large(), backend="cupy", device_memory=LITTLE)
    first, factor = solver.solve(), solver._factor
    second = solver.update(epsilon_abs=1.01 * solver.problem.epsilon).solve()
    assert second.status == nt.Status.SOLVED
    assert second.iterations < first.iterations
    assert solver._factor is factor


def test_on_a_gpu():
    """The same, where there is one."""
    if reason := gpu_missing():
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    problem = large()
    solver = nt.Solver(problem, backend="cupy", device_memory=LITTLE)
    solution, plain = solver.solve(), nt.Solver(problem, backend="numpy", method="admm", polish=False).solve()
    assert solver._plan.streamed and solution.status == nt.Status.SOLVED
    assert solution.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-4)


def test_memory_map(cupy, tmp_path):
    plain = large()
    X = np.memmap(tmp_path / "X", np.float64, "w+", shape=plain.X.shape)
    X[...] = plain.X
    X.flush()
    mapped = nt.Problem(np.memmap(tmp_path / "X", np.float64, "r", shape=X.shape), plain.Y, epsilon_abs=plain.epsilon)
    a, b = (nt.Solver(p, backend="cupy", device_memory=LITTLE).solve() for p in (plain, mapped))
    np.testing.assert_array_equal(a.W, b.W)


def test_infeasible(cupy):
    problem = infeasible_with_ray(np.random.default_rng(0), "outputs", P=900).problem
    solver = nt.Solver(problem, backend="cupy", device_memory=60_000)
    assert solver.solve().status == nt.Status.INFEASIBLE
    assert solver._plan.streamed


# the plan


@given(
    n=st.integers(1, 5000),
    m=st.integers(1, 5000),
    samples=st.integers(1, 10**7),
    itemsize=st.sampled_from([4, 8]),
    free=st.integers(10**6, 10**12),
    bounds=st.booleans(),
)
@example(n=1001, m=1000, samples=60000, itemsize=4, free=80 * 10**9, bounds=False)
@example(n=4096, m=4096, samples=10**6, itemsize=4, free=24 * 10**9, bounds=False)
@example(n=4096, m=4096, samples=10**6, itemsize=4, free=10**9, bounds=True)
def test_a_plan_keeps_to_what_is_available(n, m, samples, itemsize, free, bounds):
    try:
        plan = memory.plan(n, m, samples, itemsize, free, bounds=bounds)
    except MemoryError as error:
        assert "memory plan" in str(error) and "numba" in str(error)
        return
    assert plan.needed <= plan.available <= free
    assert 0 <= plan.kept <= samples
    if plan.streamed:
        assert plan.width >= min(memory.LEAST_SAMPLES, samples) and plan.kept % plan.width == 0
        assert plan.per_sample * samples + sum(plan.fixed.values()) > plan.available
        # another chunk would not have fitted
        assert plan.needed + plan.per_sample * plan.width > plan.available or plan.kept + plan.width >= samples
        assert plan.page_locked > 0 and plan.moved > 0
    assert str(samples) in plan.table().replace(",", "")


def test_a_plan_that_cannot_be(cupy):
    with pytest.raises(MemoryError, match="(?s)does not fit on a card.*memory plan.*available.*in all.*numba"):
        nt.Solver(large(), backend="cupy", device_memory=1000).solve()


def test_the_plan_is_printed_before_the_first_iteration(cupy, capsys):
    nt.Solver(large(), backend="cupy", device_memory=LITTLE, verbose=True).solve()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "memory plan"
    assert any("samples that stay" in line for line in lines[:10])
    assert next(i for i, line in enumerate(lines) if "iteration" in line and "gap" in line) > 4


def test_the_command_line_shows_the_plan(cupy, tmp_path, capsys):
    problem = large()
    np.savez(tmp_path / "in.npz", X=problem.X, Y=problem.Y)
    command = ["solve", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"), "--epsilon", "0.1"]
    command += ["--backend", "cupy", "--device-memory"]
    assert main([*command, str(LITTLE)]) == 0
    assert "buffers of" in capsys.readouterr().err
    assert main([*command, "1000"]) == 1
    error = capsys.readouterr().err
    assert "does not fit on a card" in error and "in all\n" in error and "Traceback" not in error
    assert main([*command, "-1"]) == 1
    assert "--device-memory must be" in capsys.readouterr().err


def test_what_a_pool_holds_unused_counts_as_free_and_its_limit_is_kept(cupy):
    be = backends.get("cupy")
    plain = be.memory()[1]
    cupy.get_default_memory_pool = lambda: cuda_stand_in.Pool(unused=1000)
    assert be.memory() == ("a card", plain + 1000)
    cupy.get_default_memory_pool = lambda: cuda_stand_in.Pool(unused=1000, used=500, limit=20_500)
    assert be.memory() == ("a card", 20_000)


# memory that runs out all the same


class CUDARuntimeError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        cuda_stand_in.ExhaustedError("Out of memory allocating 1,024 bytes"),
        CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
    ],
    ids=["pool", "page-locked"],
)
@pytest.mark.parametrize("where", ["zeros", "empty"])
def test_out_of_memory(cupy, monkeypatch, error, where):
    """The error says what was planned and what to do; the solver can be used again."""
    problem = large()
    solver = nt.Solver(problem, backend="cupy")
    original = getattr(cupy, where)

    def exhausted(*arguments):
        raise error

    monkeypatch.setattr(cupy, where, exhausted)
    with pytest.raises(MemoryError, match="(?s)emory.*memory plan.*fewer neurons.*device_memory") as caught:
        solver.solve()
    assert caught.value.__cause__ is None
    monkeypatch.setattr(cupy, where, original)
    assert solver.solve().status == nt.Status.SOLVED


def test_other_errors_pass_as_they_are(cupy, monkeypatch):
    def broken(*arguments):
        raise CUDARuntimeError("cudaErrorLaunchFailure: unspecified launch failure")

    solver = nt.Solver(large(), backend="cupy")
    monkeypatch.setattr(cupy, "zeros", broken)
    with pytest.raises(CUDARuntimeError, match="LaunchFailure"):
        solver.solve()


def test_an_error_in_a_callback_leaves_a_usable_solver(cupy):
    calls = []

    def callback(row):
        calls.append(row)
        if len(calls) == 2:
            raise KeyboardInterrupt

    solver = nt.Solver(large(), backend="cupy", device_memory=LITTLE, callback=callback, check_every=5)
    with pytest.raises(KeyboardInterrupt):
        solver.solve()
    assert solver.solve().status == nt.Status.SOLVED


# the caller's own arrays on the device


def test_arrays_on_the_device_are_used_as_they_are(cupy):
    plain = large()
    X, Y = cuda_stand_in.ForeignArray(plain.X.copy()), cuda_stand_in.ForeignArray(plain.Y.copy())
    problem = nt.Problem(X, Y, epsilon_abs=plain.epsilon)
    solver = nt.Solver(problem, backend="cupy")
    samples = solver._loop().samples
    assert np.shares_memory(cuda_stand_in.host(samples.operator.X), X.memory)
    assert np.shares_memory(cuda_stand_in.host(samples.target), Y.memory)
    per_sample = problem.dtype.itemsize * (problem.N + 2 * problem.M) + problem.M
    assert solver._plan.per_sample == per_sample - problem.dtype.itemsize * (problem.N + problem.M)
    again = problem.replace(epsilon_abs=2 * plain.epsilon)
    assert nt.Solver(again, backend="cupy")._loop().samples.target.ctypes.data == Y.memory.ctypes.data
    other = problem.replace(Y=plain.Y)
    assert nt.Solver(other, backend="cupy")._loop().samples.target.ctypes.data != Y.memory.ctypes.data
    assert nt.Solver(problem.replace(dtype=np.float32), backend="cupy")._loop().samples.dtype == np.float32
    on_host = nt.Solver(plain, backend="cupy").solve()
    np.testing.assert_array_equal(on_host.W, cuda_stand_in.host(solver.solve().W))


def test_what_has_to_be_copied_counts(cupy):
    """Outputs of a framework, transposed, are column-major: the passes need them by rows."""
    plain = large()
    X, Y = (cuda_stand_in.ForeignArray(np.asfortranarray(a)) for a in (plain.X, plain.Y))
    solver = nt.Solver(nt.Problem(X, Y, epsilon_abs=plain.epsilon), backend="cupy")
    item = plain.dtype.itemsize
    assert solver.memory_plan().per_sample == item * 2 * plain.M + plain.M


def test_arrays_of_any_layout(cupy):
    """Samples in rows, transposed, as torch users have them: the passes need rows of neurons."""
    plain = large()
    mask, V = plain.mask, np.abs(np.random.default_rng(0).standard_normal(plain.Y.shape))
    arguments = {"epsilon_abs": plain.epsilon}
    a = nt.Problem(plain.X, plain.Y, omega=mask, V=V, **arguments)
    b = nt.Problem(
        *(np.asfortranarray(x) for x in (plain.X, plain.Y)), omega=mask.copy("F"), V=V.copy("F"), **arguments
    )
    for settings in ({}, {"device_memory": LITTLE}):
        one, other = (nt.Solver(p, backend="cupy", **settings).solve() for p in (a, b))
        np.testing.assert_allclose(one.W, other.W, rtol=1e-9, atol=1e-9)

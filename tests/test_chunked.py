"""Samples on disk: the answers are those in memory, memory keeps to what was given, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from instances import KINDS, random_problem

import nettrim as nt
from nettrim import backends, diskplan, fromdisk, scratch
from nettrim.operators import Dense
from nettrim.samples import Resident

N, M, P = 12, 5, 700
#: bytes of float64 samples beside what does not depend on them: the state is on disk, in memory, or everything is
LITTLE, SOME, MUCH = 25_000, 60_000, 10_000_000
#: tolerances that take some hundred iterations
ROUGH: dict = {"gap_tol": 5e-2, "feas_tol": 1e-2}


@pytest.fixture
def small_chunks(monkeypatch):
    """Sizes at which a small problem is cut as a large one is."""
    monkeypatch.setattr(diskplan, "_SLOT_BYTES", 30_000)
    monkeypatch.setattr(diskplan, "_USEFUL", 1000)
    for module in ("chunked", "survey"):
        monkeypatch.setattr(f"nettrim.{module}.READ_BYTES", 20_000)


def memory(extra: float, itemsize: int = 8) -> float:
    return sum(diskplan.plan(N, M, P, itemsize, 1e9).fixed.values()) + extra * itemsize / 8


def on_disk(problem: nt.Problem, folder, samples: str = "rows") -> nt.Problem:
    """The same problem with its arrays in files."""
    arrays = {}
    for name in ("X", "Y", "mask", "V"):
        a = getattr(problem, name)
        if a is not None and a.size > 1:
            np.save(folder / f"{name}.npy", a.T if samples == "rows" else a)
            arrays[name] = nt.Chunked(folder / f"{name}.npy", samples)
    return nt.Problem(
        arrays["X"],
        arrays["Y"],
        epsilon_abs=problem.epsilon,
        omega="linear" if problem.linear else "active",
        V=arrays.get("V", float(problem.V.flat[0])),
        C=problem.C,
        neuronwise=problem.neuronwise,
    )


def make(kind: str = "relu", **options) -> nt.Problem:
    return random_problem(np.random.default_rng(4), N, M, P, **KINDS.get(kind, {}), **options)


def plain(problem: nt.Problem, **settings) -> nt.Solver:
    return nt.Solver(problem, method="admm", polish=False, **settings)


def same(a: nt.Solution, b: nt.Solution, tolerance: float = 1e-9) -> None:
    assert a.status == b.status == nt.Status.SOLVED
    assert a.iterations == b.iterations
    np.testing.assert_allclose(a.W, b.W, rtol=tolerance, atol=tolerance)
    for name, value in a.certificate.to_dict().items():
        assert value == pytest.approx(b.certificate.to_dict()[name], rel=1e-7, abs=1e-9), name


# reading


def sources(a: np.ndarray, folder) -> dict:
    """The same matrix as what people have on disk."""
    np.save(folder / "a.npy", a)
    np.save(folder / "fortran.npy", np.asfortranarray(a))
    mapped = np.memmap(folder / "a.bin", a.dtype, "w+", shape=a.shape)
    mapped[...] = a
    mapped.flush()
    return {
        "path": folder / "a.npy",
        "text": str(folder / "a.npy"),
        "fortran": folder / "fortran.npy",
        "memmap": np.memmap(folder / "a.bin", a.dtype, "r", shape=a.shape),
        "offset": np.memmap(folder / "a.bin", a.dtype, "r", shape=a.shape, offset=0)[:, :],
        "written": mapped,
        "private": np.memmap(folder / "a.bin", a.dtype, "c", shape=a.shape),
        "array": a,
    }


def pieces(a: np.ndarray) -> tuple[int, int]:
    """Shape of the chunks of a file."""
    return min(4, a.shape[0]), min(40, a.shape[1])


def h5py_dataset(a, folder):
    h5py = pytest.importorskip("h5py")
    return h5py.File(folder / "a.h5", "w").create_dataset("a", data=a, chunks=pieces(a))


def zarr_array(a, folder):
    zarr = pytest.importorskip("zarr")
    z = zarr.create_array(store=str(folder / "a.zarr"), shape=a.shape, chunks=pieces(a), dtype=a.dtype)
    z[...] = a
    return z


def dask_array(a, folder):
    return pytest.importorskip("dask.array").from_array(a, chunks=pieces(a))


@pytest.mark.parametrize("samples", ["rows", "columns"])
def test_every_part_is_that_of_the_array(tmp_path, rng, dtype, samples, monkeypatch):
    monkeypatch.setattr("nettrim.chunked._HELD", 3000)
    a = rng.standard_normal((37, 211)).astype(dtype)
    given = a.T.copy() if samples == "rows" else a
    for name, source in sources(given, tmp_path).items():
        c = nt.Chunked(source, samples)
        assert c.shape == a.shape and c.dtype == dtype, name
        for first, last in ((0, 211), (5, 6), (17, 150), (210, 211), (20, 20)):
            np.testing.assert_array_equal(c[:, first:last], a[:, first:last], err_msg=name)
            for order in "CF":
                out = np.empty((37, last - first), dtype, order=order)
                np.testing.assert_array_equal(c.read(slice(first, last), out), a[:, first:last], err_msg=name)
        np.testing.assert_array_equal(c.astype(np.float32)[:, 3:100], a[:, 3:100].astype(np.float32))


@pytest.mark.parametrize("make_source", [h5py_dataset, zarr_array, dask_array])
@pytest.mark.parametrize("samples", ["rows", "columns"])
def test_hdf5_zarr_and_dask(tmp_path, rng, make_source, samples):
    a = rng.standard_normal((9, 200))
    c = nt.Chunked(make_source(a.T.copy() if samples == "rows" else a, tmp_path), samples)
    assert c.shape == a.shape and c.copies
    np.testing.assert_array_equal(c[:, 30:170], a[:, 30:170])


@pytest.mark.parametrize("make_source", [h5py_dataset, zarr_array, dask_array])
def test_a_solve_from_hdf5_zarr_and_dask(tmp_path, make_source, small_chunks):
    problem = make()
    (tmp_path / "Y").mkdir()
    X, Y = (nt.Chunked(make_source(a, f)) for a, f in ((problem.X, tmp_path), (problem.Y, tmp_path / "Y")))
    # some iterations: files of so small chunks are slow
    first = {"callback": lambda row: True}
    solver = nt.Solver(nt.Problem(X, Y, epsilon_abs=problem.epsilon), memory=memory(SOME), **first)
    np.testing.assert_allclose(solver.solve().W, plain(problem, **first).solve().W, rtol=1e-10, atol=1e-10)
    assert solver._disk_plan.streamed


def test_what_is_no_source(tmp_path, rng):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "whole.npy", rng.standard_normal((20, 30)))
    cut = (tmp_path / "whole.npy").read_bytes()[:-100]
    (tmp_path / "cut.npy").write_bytes(cut)
    for source, error, message in (
        ([[1.0]], TypeError, "source must be the path"),
        (np.zeros((3, 4), int), TypeError, "float32 or float64"),
        (np.zeros(3), ValueError, "matrix"),
        (np.zeros((0, 3)), ValueError, "empty"),
        (tmp_path / "a.npz", ValueError, "must be an .npy file"),
        (tmp_path / "empty.npy", ValueError, "no whole .npy file"),
        (tmp_path / "cut.npy", ValueError, "cut.npy is no whole .npy file"),
        (tmp_path / "none.npy", FileNotFoundError, "none.npy"),
    ):
        with pytest.raises(error, match=message):
            nt.Chunked(source)
    with pytest.raises(ValueError, match="samples must be"):
        nt.Chunked(np.zeros((2, 3)), "neurons")
    with pytest.raises(IndexError, match="columns only"):
        nt.Chunked(np.zeros((2, 3)))[0]


# the door


@pytest.mark.parametrize("name", ["X", "Y"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_named_with_their_samples(tmp_path, name, value, small_chunks):
    arrays = {"X": np.ones((N, P)), "Y": np.ones((M, P))}
    arrays[name][2, 650] = value
    kind = "NaN" if np.isnan(value) else "inf"
    with pytest.raises(ValueError, match=f"{name} contains {kind}, in samples [1-9]"):
        nt.Problem(nt.Chunked(arrays["X"]), nt.Chunked(arrays["Y"]), 0.1)


def test_other_errors_at_the_door(rng):
    X, Y = nt.Chunked(rng.standard_normal((N, P))), nt.Chunked(np.abs(rng.standard_normal((M, P))))
    for changes, error, message in (
        ({"Y": nt.Chunked(np.ones((M, P + 1)))}, ValueError, "one column per sample"),
        ({"X": nt.Chunked(np.ones((P, N))), "Y": nt.Chunked(np.ones((P, M)))}, ValueError, 'samples="rows"'),
        ({"Y": nt.Chunked(np.ones((M, P), bool))}, TypeError, "Y must be float32"),
        ({"omega": "all"}, ValueError, "omega must be"),
        ({"omega": nt.Chunked(np.ones((M, P)))}, TypeError, "omega must be a mask"),
        ({"omega": np.ones((M, 3), bool)}, ValueError, "omega must have the shape"),
        ({"V": np.ones((M, 3))}, ValueError, "V must be a number or have the shape"),
        ({"V": np.full((M, P), np.nan)}, ValueError, "V contains NaN"),
        ({"X": nt.Convolution(np.ones((2, 1, 4, 4)), 3)}, TypeError, "Convolution"),
        ({"X": nt.Chunked(np.full((N, P), 1e300)), "dtype": np.float32}, ValueError, "X contains inf in float32"),
    ):
        with pytest.raises(error, match=message):
            nt.Problem(**({"X": X, "Y": Y, "epsilon": 0.1} | changes))
    with pytest.warns(UserWarning, match="negative entries"):
        nt.Problem(X, X, 0.1)
    problem = nt.Problem(X, Y, 0.1)
    with pytest.raises(ValueError, match='method="working_set" needs the samples in memory'):
        nt.Solver(problem, method="working_set")
    with pytest.raises(ValueError, match="memory must be"):
        nt.Settings(memory="lots")
    with pytest.raises(ValueError, match="scratch must be an existing folder"):
        nt.Settings(scratch="/nowhere/at/all")
    assert nt.Settings(memory="3GB").memory_bytes == 3e9


def test_cupy_is_refused(cupy, rng):
    problem = nt.Problem(nt.Chunked(rng.standard_normal((N, P))), nt.Chunked(np.ones((M, P))), 0.1)
    with pytest.raises(ValueError, match="on the CPU; got backend='cupy'"):
        nt.Solver(problem, backend="cupy")


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_knows_the_same(tmp_path, kind, small_chunks):
    problem = make(kind)
    other = on_disk(problem, tmp_path)
    assert other.chunked and other.on_disk == (not problem.compact)
    for name in ("N", "M", "P", "dtype", "linear", "inactive", "zero_is_feasible", "compact"):
        assert getattr(problem, name) == getattr(other, name), name
    for name in ("y_norm", "scale", "epsilon"):
        assert getattr(problem, name) == pytest.approx(getattr(other, name), rel=1e-13), name
    assert "Problem(" in repr(other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_is_the_same(tmp_path, kind, rng, small_chunks):
    problem = make(kind)
    other = on_disk(problem, tmp_path)
    W = rng.standard_normal((N, M))
    dual = rng.standard_normal((N + 1, M) if problem.compact else (M, P))
    expected = nt.certify(problem, W, dual).to_dict()
    chunked = [dual] if problem.compact else [dual, nt.Chunked(dual)]
    for values in chunked:
        for name, value in nt.certify(other, W, values).to_dict().items():
            assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


# passes


@pytest.mark.parametrize("samples", ["rows", "columns"])
@pytest.mark.parametrize("kind", ["relu", "bounds"])
@pytest.mark.parametrize("extra", [LITTLE, SOME, MUCH])
def test_every_pass_is_that_of_all_samples_at_once(tmp_path, backend, kind, samples, extra, dtype, rng, small_chunks):
    problem = make(kind, dtype=dtype)
    other = on_disk(problem, tmp_path, samples)
    be, more = backends.get(backend), 15_000 * (backend == "numpy")
    whole = Resident(Dense(problem.X, be, dtype), problem.Y, problem.mask, problem.V, be)
    solver = nt.Solver(other, backend=backend, memory=memory(extra, np.dtype(dtype).itemsize) + more)
    plan = solver._plan_disk()
    parts = fromdisk.FromDisk(other, be, plan)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == np.float64 else {"rtol": 2e-4, "atol": 2e-4}
    values = rng.standard_normal((M, P)).astype(dtype)
    W, F = (rng.standard_normal((N, M)).astype(dtype) for _ in range(2))
    A, B = whole.state(), parts.state()
    scale = np.linspace(0.2, 1, M).astype(dtype)

    def compare(a, b):
        np.testing.assert_allclose(a, b, **close)

    compare(whole.load(A, values), parts.load(B, values))
    compare(whole.sizes(), parts.sizes())
    compare(whole.target_product(), parts.target_product())
    np.testing.assert_allclose(whole.operator.gram(), parts.gram(), rtol=1e-12, atol=1e-12)
    compare(whole.violations(W), parts.violations(W))
    compare(whole.squares(A), parts.squares(B))
    for sums in (True, False):
        # the sums are those of multipliers, which the step of a check makes
        alpha = 1.0 if sums else 1.7
        (R, r), (S, s) = whole.project(A, scale, alpha, sums), parts.project(B, scale, alpha, sums)
        compare(R, S)
        assert (r is None) == (s is None) == (not sums)
        if sums:
            compare(r, s)
    compare(whole.advance(A, F), parts.advance(B, F))
    (moved, rows), (moved2, rows2) = whole.measure(A, W, F, scale), parts.measure(B, W, F, scale)
    assert moved == pytest.approx(moved2, rel=1e-5)
    compare(rows, rows2)
    compare(whole.rescale(A, W, 0.6), parts.rescale(B, W, 0.6))
    compare(whole.to_host(A), parts.to_host(B))
    compare(whole.multiplier(A, 0.3), parts.multiplier(B, 0.3)[:, 0:P])
    assert parts.fits(B) and not parts.fits(A) and not whole.fits(B)
    assert (plan.scratch > 0) == (B.file is not None)
    assert plan.streamed == (extra != MUCH)
    if backend == "numba":
        assert (plan.scratch > 0) == (extra == LITTLE)
    B.close()


# whole solves


@pytest.mark.parametrize("samples", ["rows", "columns"])
@pytest.mark.parametrize("kind", ["relu", "neuronwise", "bias free", "bounds"])
def test_solve(tmp_path, kind, samples, small_chunks):
    problem = make(kind)
    other = on_disk(problem, tmp_path, samples)
    expected = plain(problem, **ROUGH).solve()
    for extra in (LITTLE, SOME, MUCH):
        solver = nt.Solver(other, memory=memory(extra), **ROUGH)
        solution = solver.solve()
        same(solution, expected)
        assert solution.dual is None and solution.settings["method"] == "admm"
        assert nt.certify(other, solution.W).discrepancy == solution.certificate.discrepancy
        # to the last bit, every time
        again = nt.Solver(other, memory=memory(extra), **ROUGH).solve()
        np.testing.assert_array_equal(solution.W, again.W)


@pytest.mark.parametrize("method", ["auto", "admm", "working_set"])
def test_linear_layers_are_solved_in_memory(tmp_path, method, small_chunks):
    """By their moments, with all methods."""
    problem = make("linear")
    a, b = (nt.Solver(p, method=method).solve() for p in (problem, on_disk(problem, tmp_path)))
    same(a, b, 1e-8)
    assert b.dual.shape == (N + 1, M)


def test_linear_layer_with_a_radius_too_small_for_moments(tmp_path, small_chunks):
    problem = make("linear", epsilon=5e-5)
    other = on_disk(problem, tmp_path)
    assert other.on_disk
    a, b = (nt.Solver(p, method="admm", polish=False, max_iterations=60, memory=memory(LITTLE)).solve()
            for p in (problem, other))  # fmt: skip
    np.testing.assert_allclose(a.W, b.W, rtol=1e-8, atol=1e-10)


def test_a_mask_and_a_penalty(tmp_path, rng, small_chunks):
    problem = make()
    problem = problem.replace(omega=problem.mask & (rng.random((M, P)) < 0.8), V=10.0, penalty="rows")
    np.save(tmp_path / "mask.npy", problem.mask)
    X, Y = nt.Chunked(problem.X), nt.Chunked(problem.Y)
    for mask in (problem.mask, nt.Chunked(tmp_path / "mask.npy")):
        other = nt.Problem(X, Y, epsilon_abs=problem.epsilon, omega=mask, V=10.0, penalty="rows")
        same(nt.Solver(other, memory=memory(SOME), **ROUGH).solve(), plain(problem, **ROUGH).solve())


def test_the_reason_for_admm_is_logged(tmp_path, caplog, capsys, small_chunks):
    caplog.set_level("INFO", "nettrim")
    nt.Solver(on_disk(make(), tmp_path), memory=memory(LITTLE), **ROUGH, verbose=True).solve()
    assert "these are on disk" in caplog.text and "memory plan" in caplog.text
    assert capsys.readouterr().out.startswith("memory plan")


@pytest.mark.parametrize("extra", [LITTLE, MUCH])
def test_updates_start_warm(tmp_path, extra, small_chunks):
    problem = make()
    a, b = plain(problem, **ROUGH), nt.Solver(on_disk(problem, tmp_path), memory=memory(extra), **ROUGH)
    a.solve(), b.solve()
    factor, source = b._factor, b.problem.X
    same(a.update(epsilon=0.105).solve(), b.update(epsilon=0.105).solve())
    assert b._factor is factor and b.problem.X is source
    C = np.linspace(0.5, 2, N)
    same(a.update(C=C).solve(), b.update(C=C).solve())
    # from the solution alone
    first = b.solve()
    assert b.start(first).solve().status == nt.Status.SOLVED


def test_an_update_does_not_read_the_samples_again(tmp_path, monkeypatch, small_chunks):
    problem = on_disk(make(), tmp_path)
    monkeypatch.setattr(nt.Chunked, "read", lambda *_: pytest.fail("read"))
    assert problem.replace(epsilon=0.2, C=2.0).y_norm == problem.y_norm


def test_sparsest_and_path(tmp_path, small_chunks):
    problem = make()
    other = on_disk(problem, tmp_path)
    options = {**ROUGH, "method": "admm", "polish": False}
    a = nt.sparsest(problem.X, problem.Y, epsilon=0.1, rounds=2, **options)
    b = nt.sparsest(other.X, other.Y, epsilon=0.1, rounds=2, memory=memory(SOME), **options)
    assert a.round == b.round > 1
    np.testing.assert_allclose(a.W, b.W, rtol=1e-8, atol=1e-8)
    a, b = (nt.path(p.X, p.Y, epsilons=[0.1, 0.2], memory=memory(SOME), **options) for p in (problem, other))
    for one, two in zip(a, b, strict=True):
        same(one, two, 1e-8)


def test_weights_of_zero_that_meet_everything():
    rng = np.random.default_rng(0)
    X, Y = nt.Chunked(rng.standard_normal((N, P))), nt.Chunked(np.abs(rng.standard_normal((M, P))))
    solution = nt.solve(X, Y, epsilon=1.0)
    assert solution.status == nt.Status.SOLVED and not solution.W.any() and solution.certificate.gap == 0


# memory


@given(
    n=st.integers(1, 3000),
    m=st.integers(1, 3000),
    samples=st.integers(1, 10**7),
    itemsize=st.sampled_from([4, 8]),
    available=st.integers(10**8, 10**11),
    bounds=st.booleans(),
    numpy=st.booleans(),
)
@example(n=785, m=300, samples=10**6, itemsize=4, available=2 * 10**9, bounds=False, numpy=False)
@example(n=785, m=300, samples=10**6, itemsize=4, available=3 * 10**8, bounds=True, numpy=False)
def test_a_plan_keeps_to_what_is_available(n, m, samples, itemsize, available, bounds, numpy):
    stored = {"X": itemsize * n, "Y": itemsize * m} | ({"V": itemsize * m} if bounds else {})
    try:
        plan = diskplan.plan(n, m, samples, itemsize, available, stored=stored, numpy=numpy)
    except MemoryError as error:
        assert "memory plan" in str(error) and "Raise memory" in str(error)
        return
    assert plan.needed <= available and plan.width >= 1
    assert 0 <= plan.kept <= samples
    if plan.streamed:
        assert plan.kept % plan.width == 0 and plan.read > 0
        assert (plan.scratch > 0) == (plan.state == 0) == (plan.written > 0)
    else:
        assert plan.read == plan.written == 0
    assert plan.seconds(1e10, 1e9, 1e9) >= plan.flops / 1e10
    assert f"{samples:,}" in plan.table()


def test_too_little_memory(tmp_path, small_chunks):
    solver = nt.Solver(on_disk(make(), tmp_path), memory=memory(1000))
    with pytest.raises(MemoryError, match="(?s)smallest buffers.*memory plan.*in all.*Raise memory"):
        solver.solve()
    with pytest.raises(MemoryError):
        solver.memory_plan()


MEASURED = """
import json, sys
import numpy as np, nettrim as nt
folder, samples, backend, memory = sys.argv[1:]
rng = np.random.default_rng(0)
small = rng.standard_normal((8, 60)).astype(np.float32)
nt.solve(small, np.maximum(small[:3], 0), epsilon=0.1, method="admm", backend=backend)

def peak():
    # of this program: what resource.getrusage says includes the one that started it
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

base = peak()
X, Y = (nt.Chunked(f"{folder}/{name}.npy", samples) for name in "XY")
solver = nt.Solver(nt.Problem(X, Y, epsilon=0.1), memory=memory, backend=backend, max_iterations=3, scratch=folder)
solution = solver.solve()
plan = solver._disk_plan
print(json.dumps({"peak": peak() - base, "scratch": plan.scratch, "available": plan.available,
                  "bound": solution.certificate.dual_bound}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the resident pages of Linux")
@pytest.mark.parametrize(("samples", "backend"), [("rows", "numba"), ("columns", "numpy")])
def test_peak_memory_keeps_to_the_setting(tmp_path, samples, backend):
    """Arrays of more than twice the memory."""
    P, N, M = 170_000, 250, 60
    for name, rows in (("X", N), ("Y", M)):
        shape = (P, rows) if samples == "rows" else (rows, P)
        a = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, shape)
        rng = np.random.default_rng(1)
        for i in range(0, shape[0], max(1, shape[0] // 20)):
            part = a[i : i + max(1, shape[0] // 20)]
            part[...] = np.maximum(rng.standard_normal(part.shape, np.float32), 0)
        a.flush()
        del a
    command = [sys.executable, "-c", MEASURED, str(tmp_path), samples, backend, "100MB"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    stored = sum((tmp_path / f"{name}.npy").stat().st_size for name in "XY")
    assert stored > 2 * found["available"]
    assert 0 < found["peak"] < found["available"]
    assert found["scratch"] > 0 and np.isfinite(found["bound"])


# nothing is left behind


def open_files(folder) -> list[str]:
    """Files in a folder that this process holds open, those without a name too."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [link for link in links if link.startswith(f"{folder}/")]


@pytest.fixture
def folder(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    gc.collect()
    assert not os.listdir(tmp_path / "scratch") and not open_files(tmp_path / "scratch")


def test_scratch_is_gone_after_success(tmp_path, folder, small_chunks):
    problem = on_disk(make(), tmp_path)
    solver = nt.Solver(problem, memory=memory(LITTLE), **ROUGH, scratch=folder)
    solver.solve()
    # kept for a warm start, without a name
    assert len(open_files(folder)) == 1 and not os.listdir(folder)


@pytest.mark.parametrize("where", ["read", "write"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_scratch_is_gone_after_an_error(tmp_path, folder, monkeypatch, error, where, small_chunks):
    problem = on_disk(make(), tmp_path)
    solver = nt.Solver(problem, memory=memory(LITTLE), scratch=folder, **ROUGH)
    original, count = getattr(scratch.Scratch, where), iter(range(10**6))

    def broken(self, *arguments):
        if next(count) == 50:
            raise error
        original(self, *arguments)

    monkeypatch.setattr(scratch.Scratch, where, broken)
    with pytest.raises(error) as caught:
        solver.solve()
    # although the error still holds the frames
    assert caught.tb and not open_files(folder)
    monkeypatch.setattr(scratch.Scratch, where, original)
    same(solver.solve(), plain(make(), **ROUGH).solve())


def test_ctrl_c_ends_with_a_certified_iterate(tmp_path, folder, small_chunks):
    def callback(row):
        # a second one would end the solve at once
        if row["iteration"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    problem = on_disk(make(), tmp_path)
    solver = nt.Solver(problem, memory=memory(LITTLE), scratch=folder, callback=callback, check_every=5, gap_tol=1e-6)
    solution = solver.solve()
    assert solution.status == nt.Status.INTERRUPTED and np.isfinite(solution.certificate.dual_bound)


def test_a_full_disk_shows_before_the_first_iteration(tmp_path, folder, monkeypatch, small_chunks):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    solver = nt.Solver(on_disk(make(), tmp_path), memory=memory(LITTLE), scratch=folder)
    with pytest.raises(OSError, match="state needs .* in .*scratch, where .* are free: set scratch") as caught:
        solver.solve()
    assert caught.value.errno == errno.ENOSPC and not open_files(folder)


def test_a_disk_that_fills_up_meanwhile(tmp_path, folder, monkeypatch, small_chunks):
    original = scratch.Scratch._all

    def full(self, what, *arguments):
        if what == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, what, *arguments)

    monkeypatch.setattr(scratch.Scratch, "_all", full)
    with pytest.raises(OSError, match="set scratch"):
        nt.Solver(on_disk(make(), tmp_path), memory=memory(LITTLE), scratch=folder).solve()


def test_a_process_that_is_killed_leaves_nothing(tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal
        from nettrim.scratch import Scratch
        import numpy as np
        Scratch(100_000, {str(tmp_path)!r}).write(0, np.ones(1000))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert not os.listdir(tmp_path)

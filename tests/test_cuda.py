"""The GPU backend: its kernels and its control flow on the CPU, and the same tests on a GPU where there is one."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import cuda_stand_in
import numpy as np
import pytest
from instances import KINDS, infeasible_with_ray, known_optimum, random_problem

import nettrim as nt
from nettrim import backends, device
from nettrim.backends import cupy_

BENCH = Path(__file__).parent.parent / "bench"
REQUIRED = os.environ.get("NETTRIM_REQUIRE_GPU") == "1"


def gpu_missing() -> str | None:
    try:
        import cupy

        cupy.cuda.Device().compute_capability  # noqa: B018  raises without a device
    except Exception as error:
        return f"no GPU: {type(error).__name__}"
    return None


@pytest.fixture(params=["stand-in", "gpu"])
def be(request):
    """The backend, on the CPU and on a GPU."""
    if request.param == "stand-in":
        request.getfixturevalue("cupy")
    elif reason := gpu_missing():
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    return backends.get("cupy")


def arrays(rng, M, P, dtype, constant):
    T, Y, Z = (rng.standard_normal((M, P)).astype(dtype) for _ in range(3))
    V = np.full((1, 1), 0.3, dtype) if constant else np.abs(rng.standard_normal((M, P))).astype(dtype)
    return T, np.maximum(Y, 0), Z, Y > 0, V


SHAPES = [(1, 1), (3, 7), (4, 64), (5, 2050), (2, 9001), (130, 5)]


@pytest.mark.parametrize("constant", [True, False], ids=["one bound", "bounds"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes(be, rng, dtype, shape, constant):
    """Every pass is the numpy backend's, on rows that are and are not multiples of 16 bytes."""
    plain = backends.get("numpy")
    T, Y, Z, mask, V = arrays(rng, *shape, dtype, constant)
    t, y, z, inside, v = (be.asarray(a, a.dtype) for a in (T, Y, Z, mask, V))
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-6, "atol": 1e-6}
    np.testing.assert_allclose(be.to_host(be.ball_norms(t, y, inside)), plain.ball_norms(T, Y, mask), rtol=1e-6)
    np.testing.assert_allclose(
        be.to_host(be.multiplier_sums(t, y, inside, v)), plain.multiplier_sums(T, Y, mask, V), **close
    )
    np.testing.assert_allclose(
        be.to_host(be.violation_sums(z, y, inside, v)), plain.violation_sums(Z, Y, mask, V), **close
    )
    for radii in (np.array([0.5]), np.linspace(0.1, 1e3, shape[0])):
        scale = be.shrink(be.ball_norms(t, y, inside), radii, dtype)
        expected = plain.shrink(plain.ball_norms(T, Y, mask), radii, dtype)
        assert expected.dtype == dtype
        np.testing.assert_allclose(be.to_host(scale), expected, rtol=1e-6)
        np.testing.assert_allclose(
            be.to_host(be.residual_sums(t, z, y, inside, v, scale)),
            plain.residual_sums(T, Z, Y, mask, V, expected),
            **close,
        )
        a, b = be.copy(t), T.copy()
        be.project_relax(a, y, inside, v, scale, 1.7)
        plain.project_relax(b, Y, mask, V, expected, 1.7)
        np.testing.assert_allclose(be.to_host(a), b, **close)


@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (6, 1)], ids=["one", "each", "rows"])
def test_soft_threshold(be, rng, dtype, shape):
    B, C = rng.standard_normal((6, 4)).astype(dtype), rng.uniform(0, 1, shape).astype(dtype)
    b, expected = be.asarray(B.copy(), dtype), B.copy()
    be.soft_relax(b, be.asarray(C, dtype), 1.7)
    backends.get("numpy").soft_relax(expected, C, 1.7)
    np.testing.assert_allclose(be.to_host(b), expected, rtol=1e-6, atol=1e-7)


def edges(dtype):
    """Zeros of both signs, the smallest and largest numbers, infinities, NaN."""
    info = np.finfo(dtype)
    values = [0.0, 1.0, 1.5, info.eps, info.tiny, info.smallest_subnormal, info.max, np.inf]
    return np.array([*values, *(-x for x in values), np.nan], dtype)


def test_edge_cases_bit_for_bit(cupy, dtype):
    """The formulas of prox.cuh and the same ones in NumPy, with NaN passing through."""
    be, values = backends.get("cupy"), edges(dtype)
    t, y, v = (a.ravel() for a in np.meshgrid(values, values[np.isfinite(values)], values[values >= 0]))
    one, half, alpha = dtype(1), dtype(0.5), dtype(1.75)
    bits = np.uint32 if dtype == np.float32 else np.uint64
    for inside in (True, False):
        mask = np.full((1, t.size), inside)
        a = be.asarray(t[None].copy(), dtype)
        scale = be.asarray(np.array([half]), dtype)
        be.project_relax(
            a, be.asarray(y[None], dtype), be.asarray(mask, bool), be.asarray(v[None], dtype), scale, alpha
        )
        with np.errstate(all="ignore"):
            ball = (one - alpha * half) * t - alpha * (one - half) * y
            expected = ball if inside else t - alpha * np.where(t > v, v, t)
        # the sign and payload of a NaN are the processor's business
        np.testing.assert_array_equal(np.isnan(be.to_host(a)[0]), np.isnan(expected))
        known = ~np.isnan(expected)
        np.testing.assert_array_equal(be.to_host(a)[0][known].view(bits), expected[known].view(bits))
    b, k = (x.ravel() for x in np.meshgrid(values, values[values >= 0]))
    a = be.asarray(b[None].copy(), dtype)
    be.soft_relax(a, be.asarray(k[None], dtype), one)
    with np.errstate(all="ignore"):
        positive = [np.where(x <= 0, dtype(0), x) for x in (b - k, -b - k)]
        expected = b - one * (positive[0] - positive[1])
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(be.to_host(a)[0]), ~known)
    np.testing.assert_array_equal(be.to_host(a)[0][known].view(bits), expected[known].view(bits))


def test_infinite_bounds_never_bind(be, dtype):
    q, y = be.asarray(np.array([[1.0, 2.0]]), dtype), be.asarray(np.zeros((1, 2)), dtype)
    mask, v = be.asarray(np.array([[False, False]]), bool), be.asarray(np.array([[np.inf, 3.0]]), dtype)
    np.testing.assert_array_equal(be.to_host(be.multiplier_sums(q, y, mask, v)), [[0, 0, 6]])


def test_products_and_inverse(be, rng, dtype):
    A, B, C = (rng.standard_normal(s).astype(dtype) for s in ((5, 7), (9, 7), (5, 9)))
    a, b, c = (be.asarray(x, dtype) for x in (A, B, C))
    out = be.product(a, b.T, c, 2.0, 0.5)
    assert out is c
    np.testing.assert_allclose(be.to_host(c), 2 * A @ B.T + 0.5 * C, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(be.to_host(be.product(a.T, c)), A.T @ be.to_host(c), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(be.moments(a), A.astype(np.float64) @ A.T, rtol=1e-12)
    S = A.astype(np.float64) @ A.T + np.eye(5)
    np.testing.assert_allclose(be.to_host(be.inverse(S.copy())), np.linalg.inv(S), atol=1e-12)
    assert be.norm(a) == pytest.approx(np.linalg.norm(A), rel=1e-6)


def test_a_singular_system_raises(be):
    with pytest.raises(np.linalg.LinAlgError):
        be.inverse(-np.eye(3))


@pytest.mark.parametrize("kind", [*KINDS, "more inputs than samples"])
def test_solve(be, kind):
    """The same answer as on the CPU, certified."""
    size = (12, 5, 200) if kind in KINDS else (40, 4, 25)
    problem = random_problem(np.random.default_rng(2), *size, **KINDS.get(kind, {}))
    solution = nt.Solver(problem, backend="cupy", gap_tol=1e-5).solve()
    other = nt.Solver(problem, backend="numpy", method="admm", polish=False, gap_tol=1e-5).solve()
    assert solution.status == other.status == nt.Status.SOLVED
    assert solution.settings["method"] == "admm"
    assert solution.settings["backend"] == "cupy"
    assert type(solution.W) is np.ndarray
    assert solution.certificate.objective == pytest.approx(other.certificate.objective, rel=3e-5)
    assert nt.certify(problem, solution.W, solution.dual) == solution.certificate


def test_warm_starts_and_known_optimum(be):
    instance = known_optimum(np.random.default_rng(3), 30, 4, 200)
    solver = nt.Solver(instance.problem, backend="cupy", gap_tol=1e-5)
    first = solver.solve()
    assert first.certificate.objective == pytest.approx(instance.objective, rel=2e-5)
    assert solver.solve().iterations < first.iterations


def test_infeasible(be):
    problem = infeasible_with_ray(np.random.default_rng(0), "outputs").problem
    solution = nt.Solver(problem, backend="cupy").solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert nt.verify_ray(problem, solution.ray) > 0


def test_working_sets_are_refused(be):
    problem = random_problem(np.random.default_rng(2), 12, 5, 60)
    with pytest.raises(ValueError, match="working_set.*CPU"):
        nt.Solver(problem, backend="cupy", method="working_set")


def test_rounded_products_are_refused(cupy, monkeypatch):
    """TF32 drops the last 13 bits of a factor."""

    def rounded(transa, transb, a, b, out, alpha=1.0, beta=0.0):
        short = ((cuda_stand_in.host(x).view(np.uint32) >> 13 << 13).view(np.float32) for x in (a, b))
        return cuda_stand_in.gemm(transa, transb, *map(cuda_stand_in.device, short), out, alpha, beta)

    monkeypatch.setattr(cupy.cublas, "gemm", rounded)
    with pytest.raises(RuntimeError, match="TF32"):
        backends.get("cupy")


def test_nothing_waits_for_the_device_between_checks(cupy):
    """Twice the iterations, as many waits: those of the start, of adapting and of the last check."""
    problem = random_problem(np.random.default_rng(2), 12, 5, 60)
    waits = []
    for count in (30, 60):
        loop = nt.Solver(problem, backend="cupy")._loop()
        state = loop.start()
        before = cuda_stand_in.DeviceArray.waits
        settings = nt.Settings(max_iterations=count, check_every=10**6, adapt=False)
        loop.run(state, settings, lambda check: False, lambda: None, lambda check: None)
        waits.append(cuda_stand_in.DeviceArray.waits - before)
    assert waits[0] == waits[1] > 0


def test_large_arrays_are_uploaded_by_blocks(cupy, monkeypatch, rng):
    """CuPy would page-lock a buffer of their size, and keep it."""
    monkeypatch.setattr(cupy_, "LARGE_BYTES", 1000)
    be = backends.get("cupy")
    whole, shapes = cupy.asarray, []
    monkeypatch.setattr(cupy, "asarray", lambda a, dtype=None: shapes.append(np.size(a)) or whole(a, dtype))
    A = rng.standard_normal((37, 50))
    for a in (A, np.asfortranarray(A), A[::2], A[:, ::3], A.astype(np.float32)):
        for dtype in (np.float32, np.float64):
            np.testing.assert_array_equal(be.to_host(be.asarray(a, dtype)), a.astype(dtype))
            made = be.rowwise(a, dtype)
            assert made.flags.c_contiguous
            np.testing.assert_array_equal(be.to_host(made), a.astype(dtype))
    assert max(shapes, default=0) * 8 <= 1000


def test_nan_is_the_largest(be, dtype):
    z = be.asarray(np.array([[1.0, np.nan, 2.0]]), dtype)
    y, mask, v = (
        be.asarray(np.zeros((1, 3)), dtype),
        be.asarray(np.zeros((1, 3), bool), bool),
        be.asarray([[0.0]], dtype),
    )
    assert np.isnan(be.to_host(be.violation_sums(z, y, mask, v))).tolist() == [[False, True, True]]


def test_no_cuda_libraries(monkeypatch):
    """CuPy is there, cuBLAS is not."""
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    cuda_stand_in.forget()
    with pytest.raises(ImportError, match="libraries of CUDA.*ctk"):
        backends.get("cupy")


def test_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda_stand_in.forget()
    with pytest.raises(ImportError, match="extra cuda12"):
        backends.get("cupy")


def test_no_gpu(cupy, monkeypatch):
    def missing():
        raise cuda_stand_in.RuntimeFailure("cudaErrorNoDevice")

    monkeypatch.setattr(cupy.cuda, "Device", missing)
    with pytest.raises(RuntimeError, match="no usable GPU.*numba"):
        backends.get("cupy")


def test_the_benchmark_runs(cupy, tmp_path, monkeypatch):
    """bench/gpu.py from end to end, at sizes of a few milliseconds: time on a GPU is too dear for its slips."""
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("common", "gpu"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    common, gpu = importlib.import_module("common"), importlib.import_module("gpu")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    small = {
        "SIZES": [(12, 5, 300)],
        "SCALING": [(12, 5, 300)],
        "STREAMED": [(12, 5, 2000)],
        "CERTIFICATE": [(12, 5, 300)],
    }
    for name, value in small.items():
        monkeypatch.setattr(gpu, name, value)
    for name, value in {"CHECK": (12, 5, 300), "PEAK": 64, "COUNT": 2}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(device, "PRODUCT", (64, 64, 64))
    monkeypatch.setattr(device, "COPY", 1 << 16)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["environment"]["gpu"] == "a card"
    assert [row["kept"] < 1 for row in record["streamed"]] == [True] * 3
    assert record["check"]["active, streamed"]["streamed"]
    assert {row["status"] for row in record["certificate"][0]["runs"].values()} == {"solved"}
    device._device_speed.cache_clear()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_nvcc(tmp_path, architecture):
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings"]
    command += ["-o", str(tmp_path / "admm.cubin"), str(cuda_stand_in.CUDA / "admm.cu")]
    subprocess.run(command, check=True)

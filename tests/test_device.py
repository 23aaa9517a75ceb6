"""The choice of a device: by measured speed, and never at the price of an error."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from test_cuda import gpu_missing

import nettrim as nt
from nettrim import backends, device
from nettrim.device import Speed


@pytest.fixture
def speeds(monkeypatch):
    """Set both speeds; the CPU does 100 GFLOP/s."""

    def set_to(flops, bytes_=1e10):
        monkeypatch.setattr(device, "host_speed", lambda dtype, threads: Speed(1e11))
        monkeypatch.setattr(device, "_device_speed", lambda dtype: Speed(flops, bytes_))

    return set_to


def problem_of(N, M, P, **options):
    """Its size is what counts: no data stand behind it."""
    X, Y = np.broadcast_to(np.float32(1), (N, P)), np.broadcast_to(np.float32(1), (M, P))
    return nt.Problem(X, Y, 0.1, **options)


def test_a_large_problem_goes_to_a_fast_gpu(cupy, speeds):
    problem = problem_of(1001, 1000, 60000)  # 7e13 flops: 700 s of ADMM on that CPU
    speeds(4e13)
    assert device.choose(problem, nt.Settings()) == "cupy"
    # working sets on the CPU may be ten times as fast as ADMM there
    speeds(1e12)
    assert device.choose(problem, nt.Settings()) == "numba"
    # a bus so slow that the samples take longer than all products
    speeds(4e13, 1e6)
    assert device.choose(problem, nt.Settings()) == "numba"


@pytest.mark.parametrize("settings", [{"method": "working_set"}, {"gap_tol": 1e-7}])
def test_what_only_the_cpu_does_stays_there(cupy, speeds, settings):
    speeds(1e15)
    assert device.choose(problem_of(1001, 1000, 60000), nt.Settings(**settings)) == "numba"


def test_streaming_is_counted(cupy, speeds):
    problem = problem_of(1001, 1000, 60000)
    speeds(4e13, 1e9)
    assert device.choose(problem, nt.Settings()) == "cupy"
    assert device.choose(problem, nt.Settings(device_memory=4e8)) == "numba"
    assert device.choose(problem, nt.Settings(device_memory=1e3)) == "numba"


def test_small_problems_do_not_look_for_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backends, "get", lambda *_: pytest.fail("looked"))
    assert device.choose(problem_of(301, 100, 2000), nt.Settings()) == "numba"
    # a linear layer's moments stand for its samples
    assert device.choose(problem_of(300, 100, 10**5, omega="linear"), nt.Settings()) == "numba"


@pytest.mark.parametrize("broken", [ImportError("no CuPy"), RuntimeError("no device"), OSError("")])
def test_any_error_means_the_cpu(monkeypatch, caplog, broken):
    def get(name, *_):
        raise broken

    monkeypatch.setattr(backends, "get", get)
    with caplog.at_level(logging.INFO, logger="nettrim"):
        assert device.choose(problem_of(1001, 1000, 60000), nt.Settings()) == "numba"
    assert (str(broken) or "OSError") in caplog.text


def test_the_solver_asks(monkeypatch, cupy):
    X = np.maximum(np.random.default_rng(0).standard_normal((10, 200)), 0)
    monkeypatch.setattr("nettrim.solver.choose", lambda problem, settings: "cupy")
    assert nt.solve(X, X[:3], 0.1).settings["backend"] == "cupy"
    assert nt.solve(X, X[:3], 0.1, backend="numba").settings["backend"] == "numba"


def test_speeds_are_measured(cupy, monkeypatch):
    monkeypatch.setattr(device, "PRODUCT", (64, 64, 64))
    monkeypatch.setattr(device, "COPY", 1 << 16)
    for measured in (device.host_speed, device._device_speed):
        measured.cache_clear()
    try:
        here, there = device.host_speed(np.dtype(np.float32), 1), device._device_speed(np.dtype(np.float32))
        assert 1e6 < here.flops < 1e14 and 1e5 < there.flops < 1e16 and 1e5 < there.bytes < 1e13
        assert device.host_speed(np.dtype(np.float32), 1) is here
    finally:
        for measured in (device.host_speed, device._device_speed):
            measured.cache_clear()


def test_on_a_gpu():
    """The whole way, where there is one."""
    if reason := gpu_missing():
        from test_cuda import REQUIRED

        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    speed = device._device_speed(np.dtype(np.float32))
    assert speed.flops > 1e11 and speed.bytes > 1e8

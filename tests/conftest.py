"""Fixtures and hypothesis profiles of the whole suite."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import cuda_stand_in
import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("quick", max_examples=8, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=300, deadline=None)
hypothesis.settings.load_profile(os.environ.get("NETTRIM_HYPOTHESIS", "quick"))


def forget_stale_kernels() -> None:
    """Numba notices a changed kernel, but not that one which it calls, in another file, has changed."""
    from nettrim import kernels

    folder = Path(kernels.__file__).parent
    compiled = [*folder.glob("__pycache__/*.nbi"), *folder.glob("__pycache__/*.nbc")]
    newest = max(path.stat().st_mtime for path in folder.glob("*.py"))
    if any(path.stat().st_mtime < newest for path in compiled):
        for path in compiled:
            path.unlink(missing_ok=True)


def pytest_configure(config: pytest.Config) -> None:
    forget_stale_kernels()
    # a shell starts background jobs with Ctrl-C ignored, which this process and its children would inherit
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "data: needs the MNIST files and trained weights in $NETTRIM_DATA")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture(params=["admm", "working_set"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory):
    """The CUDA kernels, compiled for the CPU."""
    if not cuda_stand_in.has_compiler():
        pytest.skip("needs g++, which CI has")
    return cuda_stand_in.compile_for_host(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cupy(library, monkeypatch: pytest.MonkeyPatch):
    """The stand-in for CuPy, as what `import cupy` finds."""
    modules = cuda_stand_in.modules_of(library)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    cuda_stand_in.forget()
    yield modules["cupy"]
    cuda_stand_in.forget()


@pytest.fixture(scope="session")
def digits_layers() -> list[tuple[np.ndarray, np.ndarray, str]]:
    """(X, Y, omega) of each layer of a small network trained on scikit-learn's digits; 1797 samples."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    network = MLPClassifier((20, 12), max_iter=40, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.fit(images / 16, labels)
    layers, X = [], images.T / 16
    for i, (W, b) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        X = np.vstack([X, np.ones(X.shape[1])])
        Z = np.vstack([W, b]).T @ X
        last = i == len(network.coefs_) - 1
        Y = Z if last else np.maximum(Z, 0)
        layers.append((X, Y, "linear" if last else "active"))
        X = Y
    return layers

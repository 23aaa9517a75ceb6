"""Layers of a network trained on MNIST; the files are found through $NETTRIM_DATA."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

import nettrim as nt

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("NETTRIM_DATA" not in os.environ, reason="the environment variable NETTRIM_DATA is not set"),
]

SAMPLES = 1500


def images(count: int) -> np.ndarray:
    """(784, count) MNIST training images in [0, 1]."""
    path = Path(os.environ["NETTRIM_DATA"]) / "mnist" / "train-images-idx3-ubyte.gz"
    with gzip.open(path) as file:
        head = np.frombuffer(file.read(16), ">i4")
        assert head.tolist() == [2051, 60000, 28, 28]
        pixels = np.frombuffer(file.read(784 * count), np.uint8)
    return pixels.reshape(count, 784).T.astype(np.float32) / 255


@pytest.fixture(scope="module")
def layers() -> list[tuple[np.ndarray, np.ndarray, str]]:
    """(X, Y, omega) of the four layers of the 784-300-1000-100-10 network."""
    weights = np.load(Path(os.environ["NETTRIM_DATA"]) / "mnist_fc.npz")
    out, A = [], images(SAMPLES)
    for i in range(4):
        X = np.vstack([A, np.ones((1, SAMPLES), np.float32)])
        Z = weights[f"W{i}"].astype(np.float32) @ A + weights[f"b{i}"].astype(np.float32)[:, None]
        A = Z if i == 3 else np.maximum(Z, 0)
        out.append((X, A, "linear" if i == 3 else "active"))
    return out


def check(problem: nt.Problem, **settings) -> nt.Solution:
    solution = nt.Solver(problem, **settings).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    gap_tol = settings.get("gap_tol", 1e-3)
    assert nt.certify(problem, solution.W, solution.dual).holds(gap_tol, 1e-4)
    return solution


def test_the_network_is_the_trained_one(layers):
    shapes = [(X.shape[0], Y.shape[0]) for X, Y, _ in layers]
    assert shapes == [(785, 300), (301, 1000), (1001, 100), (101, 10)]
    path = Path(os.environ["NETTRIM_DATA"]) / "mnist" / "train-labels-idx1-ubyte.gz"
    with gzip.open(path) as file:
        labels = np.frombuffer(file.read(8 + SAMPLES), np.uint8)[8:]
    assert (layers[3][1].argmax(0) == labels).mean() > 0.98


@pytest.mark.parametrize(("index", "neurons"), [(0, 20), (1, 40), (2, 40)])
def test_hidden_layers(layers, index, neurons):
    X, Y, omega = layers[index]
    solution = check(nt.Problem(X, Y[:neurons], 0.1, omega=omega))
    assert solution.W.dtype == np.float32
    assert solution.density < 0.5
    assert solution.certificate.ball_ratio == pytest.approx(1, abs=1e-4)


def test_last_layer_to_a_tight_gap(layers):
    X, Y, omega = layers[3]
    problem = nt.Problem(X, Y, 0.1, omega=omega, dtype=np.float64)
    assert problem.compact
    check(problem, gap_tol=1e-6)


def test_a_smaller_radius_keeps_more(layers):
    X, Y, omega = layers[2]
    solver = nt.Solver(nt.Problem(X, Y[:30], 0.2, omega=omega))
    densities = []
    for epsilon in (0.2, 0.1, 0.05):
        solution = solver.update(epsilon=epsilon).solve()
        assert solution.status == nt.Status.SOLVED, solution.message
        densities.append(solution.density)
    assert densities == sorted(densities)

"""What several test modules share: tight solves, the loop behind a problem, the program's terms in plain NumPy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import nettrim as nt
from nettrim.admm import Loop


def solve_tightly(problem: nt.Problem, **settings: Any) -> nt.Solution:
    """Solution within 1e-6, and solved: for comparisons of objectives to 1e-5.

    Unless a method is asked for, both solve the problem and must agree, as far as violations of 1e-6 let them; the
    working sets' solution is returned.
    """
    if "method" not in settings:
        first, second = (solve_tightly(problem, method=m, **settings) for m in ("admm", "working_set"))
        size = max(first.certificate.objective, second.certificate.objective)
        assert abs(first.certificate.objective - second.certificate.objective) <= 2e-5 * size
        return second
    solution = nt.Solver(problem, **({"gap_tol": 1e-6, "feas_tol": 1e-6} | settings)).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    return solution


def loop_of(problem: nt.Problem, **settings: Any) -> Loop:
    """The ADMM loop a solver builds for the problem."""
    return nt.Solver(problem, **settings)._loop()


def mask_of(problem: nt.Problem) -> np.ndarray:
    """Omega as an M x P mask."""
    return np.ones(problem.Y.shape, bool) if problem.mask is None else problem.mask


def dual_value(problem: nt.Problem, L: np.ndarray) -> float:
    """-<L_Omega, Y> - sum radius ||L_Omega|| - <L_notOmega, V>, straight from the definition."""
    mask = mask_of(problem)
    V = np.broadcast_to(problem.V.astype(np.float64), mask.shape)
    inside, outside = np.where(mask, L, 0), np.where(mask, 0, L)
    norms = np.sqrt((inside**2).sum(1))
    ball = (problem.radii * norms).sum() if problem.neuronwise else problem.radii[0] * np.linalg.norm(norms)
    bounds = (outside * np.where(outside == 0, 0, V)).sum()
    return float(-(inside * problem.Y.astype(np.float64)).sum() - ball - bounds)


def residuals(problem: nt.Problem, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(W^T X - Y) on Omega and the excess over V elsewhere, zero where they do not apply, in float64."""
    mask = mask_of(problem)
    Z = W.astype(np.float64).T @ problem.X.astype(np.float64)
    V = np.broadcast_to(problem.V.astype(np.float64), mask.shape)
    return np.where(mask, Z - problem.Y, 0), np.where(mask, 0, np.maximum(Z - V, 0))


def reversed_view(a: np.ndarray) -> np.ndarray:
    """The same values behind negative strides."""
    return np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1]


def plain_network(sizes: tuple[int, ...], mixed: bool) -> tuple[list[nt.Layer], np.ndarray]:
    """Random ReLU layers fc0, fc1, ..., the last linear, and 1500 samples; `mixed` makes the inputs correlated."""
    rng = np.random.default_rng(0)
    layers = [
        nt.Layer(
            (rng.standard_normal((m, n)) ** 3 / n).astype(np.float32),
            (0.1 * rng.standard_normal(m)).astype(np.float32),
            relu=k < len(sizes) - 2,
            name=f"fc{k}",
        )
        for k, (n, m) in enumerate(pairwise(sizes))
    ]
    mix = rng.standard_normal((sizes[0], sizes[0])) if mixed else np.eye(sizes[0])
    return layers, (rng.standard_normal((1500, sizes[0])) @ mix).astype(np.float32)

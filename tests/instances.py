"""Problems whose feasibility, optimum or infeasibility is known by construction."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nettrim import Problem
from nettrim import penalties as pn
from nettrim.penalties import Penalty


class KnownOptimum(NamedTuple):
    """A problem with its optimal weights, optimal multipliers (M x P) and optimal objective."""

    problem: Problem
    W: np.ndarray
    multiplier: np.ndarray
    objective: float

    @property
    def dual(self) -> np.ndarray:
        """The multipliers as `certify` takes them: in the span of the data for a compact problem."""
        if not self.problem.compact:
            return self.multiplier
        # on a linear layer L = diag(lambda) (W^T X - Y), with one lambda for all neurons or one each
        if self.problem.neuronwise:
            strength = np.linalg.norm(self.multiplier, axis=1) / self.problem.radii
        else:
            strength = np.full(self.problem.M, np.linalg.norm(self.multiplier) / self.problem.epsilon)
        return np.vstack([strength * self.W, strength])


class Infeasible(NamedTuple):
    """An infeasible problem, a ray that proves it, and the smallest radius that works (None: none does)."""

    problem: Problem
    ray: np.ndarray
    smallest_epsilon: float | None


def layer(rng: np.random.Generator, N: int, M: int, P: int, kept: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, P), non-negative with a last row of ones, and pre-activations (M, P) of a random sparse layer."""
    X = np.maximum(rng.standard_normal((N, N)) @ rng.standard_normal((N, P)) / np.sqrt(N), 0)
    X[-1] = 1
    W = rng.standard_normal((N, M)) * (rng.random((N, M)) < kept)
    return X, W.T @ X + 0.05 * rng.standard_normal((M, N)) @ X / np.sqrt(N)


#: kinds of problems that every solver is tried on, as options of `random_problem`
KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "linear": {"linear": True},
    "neuronwise": {"neuronwise": True},
    "bias free": {"weights": "rows"},
    "bounds": {"bound": "array"},
}


def random_problem(
    rng: np.random.Generator,
    N: int,
    M: int,
    P: int,
    *,
    dtype: Any = np.float64,
    linear: bool = False,
    bound: str = "scalar",
    weights: str = "one",
    epsilon: float | None = 0.1,
    **options: Any,
) -> Problem:
    """A layer's problem, feasible because the layer's own weights are.

    `bound` is "scalar" (0), "array" (half the layer's own outputs, so some bounds are negative, and some infinite);
    `weights` is "one", "rows" (the bias row free), "columns" (N x 1) or "entries" (N x M, with free entries).
    """
    X, Z = layer(rng, N, M, P)
    Y = Z if linear else np.maximum(Z, 0)
    V: Any = 0.0
    if bound == "array":
        V = np.where(rng.random(Z.shape) < 0.1, np.inf, 0.5 * np.minimum(Z, 0))
    problem = Problem(
        X.astype(dtype),
        Y.astype(dtype),
        None if "epsilon_abs" in options else epsilon,
        omega="linear" if linear else "active",
        V=V,
        C=l1_weights(rng, weights, N, M),
        **options,
    )
    return problem


def l1_weights(rng: np.random.Generator, kind: str, N: int, M: int) -> Any:
    """C of the shape that `kind` names: see `random_problem`."""
    if kind == "one":
        return 1.0
    if kind == "rows":
        return np.append(np.ones(N - 1), 0.0)
    if kind == "columns":
        return rng.uniform(0.5, 2, (N, 1))
    if kind == "entries":
        return rng.uniform(0.5, 2, (N, M)) * (rng.random((N, M)) < 0.95)
    raise ValueError(kind)


def known_optimum(
    rng: np.random.Generator,
    N: int,
    M: int,
    P: int,
    dtype: Any = np.float64,
    *,
    linear: bool = False,
    neuronwise: bool = False,
    weights: str = "one",
    epsilon: float = 0.1,
    kept: float = 0.1,
    degenerate: bool = False,
    penalty: Penalty | None = None,
) -> KnownOptimum:
    """A problem (P >= N) built around its optimum by complementary slackness; the ball is active.

    Choose W and a subgradient S of sum C |W|, or of another `penalty`, then multipliers L with X L^T = -S, and let the
    constraints fit: on Omega Y = W^T X - L / lambda, off Omega V = W^T X where L > 0 and V > W^T X elsewhere. Omega is
    chosen first, with fewer active bounds outside than a neuron has weights, and L on Omega is of least norm. A
    `degenerate` instance has many more active bounds than weights: L is of least norm on half of the samples, and then
    Omega takes all the negative and some of the positive multipliers.
    """
    X = np.maximum(rng.standard_normal((N, P)), -0.5)
    C = np.broadcast_to(np.asarray(l1_weights(rng, weights, N, M)).reshape(_weights_shape(weights, N, M)), (N, M))
    W = rng.standard_normal((N, M)) * ((rng.random((N, M)) < kept) | (C == 0))
    S = C * np.where(W != 0, np.sign(W), rng.uniform(-0.9, 0.9, (N, M)))
    if penalty is not None:
        W, S = subgradient(rng, penalty, C, kept)
    mask, L = np.ones((M, P), bool), np.zeros((M, P))
    groups = 1 if linear else min(M, 3)
    for g in range(groups):
        rows = np.arange(g, M, groups)
        order = rng.permutation(P)
        used, rest = np.split(order, [P if linear else max(N, (P + N) // 2)])
        mask[np.ix_(rows, rest)] = False
        x = X[:, used]
        system = x @ x.T
        L[np.ix_(rows, used)] = -np.linalg.solve(system, S[:, rows]).T @ x
        if rest.size and not degenerate:
            size = np.abs(L[np.ix_(rows, used)]).mean()
            for m in rows:
                active = rng.choice(rest, min(rest.size, np.count_nonzero(W[:, m]) // 2), replace=False)
                L[m, active] = size * (0.5 + rng.exponential(size=active.size))
            L[np.ix_(rows, used)] -= np.linalg.solve(system, X[:, rest] @ L[np.ix_(rows, rest)].T).T @ x
    if degenerate:
        mask = (L < 0) | (rng.random((M, P)) < 0.3)
    Z = W.T @ X
    radius = epsilon * np.linalg.norm(Z[mask])
    norms = np.linalg.norm(np.where(mask, L, 0), axis=1)[:, None]
    reach = radius / np.sqrt(M) / norms if neuronwise else radius / np.linalg.norm(norms)
    Y = np.where(mask, Z - reach * L, 0)
    V = np.where(mask, 0, np.where(L > 0, Z, Z + rng.uniform(0.01, 1, (M, P))))
    problem = Problem(
        X.astype(dtype),
        Y.astype(dtype),
        epsilon_abs=radius,
        omega="linear" if linear else mask,
        V=0.0 if linear else V,
        C=C,
        penalty=penalty,
        neuronwise=neuronwise,
    )
    return KnownOptimum(problem, W, L, problem.penalty.value(W, C))


def subgradient(
    rng: np.random.Generator, penalty: Penalty, C: np.ndarray, kept: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights that the penalty likes, and one of its subgradients there; C is (N, M)."""
    N, M = C.shape
    W, R = rng.standard_normal((2, N, M))
    if isinstance(penalty, pn.Ridge):
        return W, C * W
    if isinstance(penalty, pn.ElasticNet):
        W *= (rng.random((N, M)) < kept) | (C == 0)
        return W, C * (np.where(W != 0, np.sign(W), np.clip(R, -0.9, 0.9)) + penalty.ridge * W)
    if isinstance(penalty, pn.Nuclear):
        rows = np.flatnonzero(C[:, 0])
        U, _ = np.linalg.qr(rng.standard_normal((rows.size, 2)))
        V, _ = np.linalg.qr(rng.standard_normal((M, 2)))
        rest = (np.eye(rows.size) - U @ U.T) @ R[rows] @ (np.eye(M) - V @ V.T)
        S = np.zeros((N, M))
        S[rows] = C.max() * (U @ V.T + 0.9 * rest / np.linalg.norm(rest, 2))
        W[rows] = (U * [3.0, 1.0]) @ V.T
        return W, S
    if isinstance(penalty, pn.KSupport):
        S = np.zeros((N, M))
        for j in range(M):
            for b in range(0, N - penalty.of + 1, penalty.of):
                w, own = rng.standard_normal(penalty.of), slice(b, b + penalty.of)
                order = np.argsort(-np.abs(w))
                top, rest = order[: penalty.k], order[penalty.k :]
                w[rest] = 0
                s = w / np.linalg.norm(w)
                s[rest] = rng.uniform(-0.9, 0.9, rest.size) * np.abs(s[top]).min()
                zero = rng.random() < 0.4
                W[own, j] = 0 if zero else w
                S[own, j] = C[b, j] * (0.9 * s if zero else s)
        return W, S
    if isinstance(penalty, pn.TotalVariation):
        size = int(np.prod(penalty.shape))
        W[:size] = np.where(np.arange(size)[:, None] < size // 2, 0.0, 1.0 + np.arange(M))
        q = penalty.weight * rng.uniform(-0.9, 0.9, (len(penalty.ends), M))
        differences = W[penalty.ends[:, 1]] - W[penalty.ends[:, 0]]
        q = np.where(differences != 0, penalty.weight * np.sign(differences), q)
        S = C * np.where(W != 0, np.sign(W), np.clip(R, -0.9, 0.9))
        np.add.at(S, penalty.ends[:, 1], q)
        np.subtract.at(S, penalty.ends[:, 0], q)
        return W, S
    shape = {"rows": (N, 1), "columns": (1, M)}.get(penalty.name)
    label = np.broadcast_to(np.arange(N * M if shape is None else max(shape)).reshape(shape or (N, M)), (N, M))
    if isinstance(penalty, pn.Groups):
        label = np.broadcast_to(penalty.labels if penalty.labels.ndim == 2 else penalty.labels[:, None], (N, M))
    S = np.zeros((N, M))
    for g in np.unique(label):
        own = (label == g) & (C > 0)
        if rng.random() < max(kept, 1.5 / (label.max() + 1)):
            S[own] = C[own] * W[own] / np.linalg.norm(W[own])
        else:
            W[own] = 0
            S[own] = C[own] * 0.9 * R[own] / max(np.linalg.norm(R[own]), 1)
    return W, S


def _weights_shape(kind: str, N: int, M: int) -> tuple[int, int]:
    return {"one": (1, 1), "rows": (N, 1), "columns": (N, 1), "entries": (N, M)}[kind]


def infeasible_with_ray(
    rng: np.random.Generator, kind: str, N: int = 12, M: int = 3, P: int = 10, dtype: Any = np.float64
) -> Infeasible:
    """Sample columns that repeat, with outputs or bounds that contradict each other; P <= N fits all the others.

    `kind` is "outputs" (two equal inputs, two different targets in the ball), "bound" (two equal inputs, one with a
    target in the ball above the other's upper bound), "bounds" (an input and its negative, both bounded below zero:
    no radius works), "linear" or "neuronwise" (as "outputs").
    """
    X, Z = layer(rng, N, M, P)
    X[:, 1] = -X[:, 0] if kind == "bounds" else X[:, 0]
    Y = np.abs(Z) + 0.1
    mask = np.ones((M, P), bool)
    mask[:, 2::3] = False
    V, ray = np.ones((M, P)), np.zeros((M, P))
    m = int(rng.integers(M))
    root = 1.0
    Y[:, 1] = Y[:, 0]
    if kind in ("outputs", "linear", "neuronwise"):
        Y[m, 1] = Y[m, 0] + 3
        ray[m, :2] = 1, -1
        smallest = 3 / np.sqrt(2)
        root = np.sqrt(M) if kind == "neuronwise" else 1.0
    elif kind == "bound":
        mask[m, 0], V[m, 0], Y[m, 1] = False, 0.5, 3
        ray[m, :2] = 1, -1
        smallest = 2.5
    elif kind == "bounds":
        mask[:, :2] = False
        V[:, :2] = 1.0
        X[:, 1] = -X[:, 0]
        V[m, :2] = -1.0
        ray[m, :2] = 1, 1
        smallest = None
    else:
        raise ValueError(kind)
    problem = Problem(
        X.astype(dtype),
        Y.astype(dtype),
        epsilon_abs=1.0 if smallest is None else 0.5 * smallest * root,
        omega="linear" if kind == "linear" else mask,
        V=0.0 if kind == "linear" else V,
        neuronwise=kind == "neuronwise",
    )
    return Infeasible(problem, ray, None if smallest is None else smallest * root)

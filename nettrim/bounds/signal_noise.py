"""A linear network on a signal and on noise: what gradient flow leaves on the noise (Theorem 3.3).

Watson et al., "Inference and Interference", section 3.2. A label y is -1 or 1, each as likely; an input has ``d_s``
entries ``y v + sigma z`` and ``d_n`` entries ``sigma z``, all z standard normal. The network ``f(x) = W2 W1 x`` has W2
of (1, m) and W1 = (Ws Wn) of (m, d_s + d_n). Its squared error over the whole population depends on w = W2 W1 only,

    L = E (f(x) - y)^2 / 2 = (w A w' - 2 w b + 1) / 2,     A = b b' + sigma^2 I,     b = (v, 0),

and gradient flow is ``W1' = -W2^T (w A - b^T)``, ``W2' = -(w A - b^T) W1^T``. The best w is
``b / (||v||^2 + sigma^2)``. (The paper's appendix prints a factor ``||v||`` too many in the last line before its
equation 37; 37 and 38 are right.)

Flow keeps ``W1 W1^T - W2^T W2``. From a balanced start, where that is zero, W1 has rank one and stays ``alpha z^T``, so
that w = 0 on the noise makes Wn = 0. From an unbalanced one, w is zero there too and Wn is not: what of it is
orthogonal to W2 has no effect, and no gradient. Magnitude pruning finds the noise only where the start was balanced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Flow", "SignalNoise", "balanced_start", "flow", "unbalanced_start"]

Weights = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SignalNoise:
    """The distribution of the inputs and labels.

    Attributes
    ----------
    v : tuple of float
        The signal, of `d_s` entries, not all zero.
    noise_inputs : int
        d_n, inputs without a signal.
    sigma : float
        Standard deviation of the noise, positive.

    Raises
    ------
    ValueError
        An argument that is not as said.
    """

    v: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    noise_inputs: int = 16
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not any(self.v) or not all(math.isfinite(entry) for entry in self.v):
            raise ValueError(f"v must have finite entries, not all zero; got {self.v!r}")
        if self.noise_inputs < 1:
            raise ValueError(f"noise_inputs must be at least 1; got {self.noise_inputs!r}")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite; got {self.sigma!r}")

    @property
    def inputs(self) -> int:
        """d = d_s + d_n."""
        return len(self.v) + self.noise_inputs

    @property
    def signal(self) -> np.ndarray:
        """b = (v, 0), the mean of y x, (d,)."""
        return np.concatenate([self.v, np.zeros(self.noise_inputs)])

    @property
    def best(self) -> np.ndarray:
        """The w with the least error, (d,)."""
        b = self.signal
        return b / (b @ b + self.sigma**2)

    def loss(self, W1: np.ndarray, W2: np.ndarray) -> float:
        """Half the mean squared error over the population."""
        w, b = (W2 @ W1)[0], self.signal
        return float((w @ b) ** 2 + self.sigma**2 * (w @ w) - 2 * w @ b + 1) / 2

    def draw(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (count, d) and labels (count,), both float64."""
        rng = np.random.default_rng(seed)
        y = rng.choice([-1.0, 1.0], count)
        return y[:, None] * self.signal + self.sigma * rng.standard_normal((count, self.inputs)), y

    def gradients(self, W1: np.ndarray, W2: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Each example's gradient in W1, (count, m d): what R is computed of.

        Columns of W1 that are pruned have a gradient all the same; leave them out with ``x[:, kept]``, ``W1[:, kept]``.
        """
        errors = x @ (W2 @ W1)[0] - y
        return (errors[:, None, None] * W2.T * x[:, None, :]).reshape(len(x), -1)


@dataclass(frozen=True)
class Flow:
    """Where gradient flow has arrived.

    Attributes
    ----------
    W1, W2 : array
        (m, d) and (1, m).
    loss : float
    gap : float
        Loss above the least one.
    noise : float
        Frobenius norm of Wn.
    drift : float
        Largest change of an entry of ``W1 W1^T - W2^T W2``, which the exact flow keeps.
    """

    W1: np.ndarray
    W2: np.ndarray
    loss: float
    gap: float
    noise: float
    drift: float


def balanced_start(model: SignalNoise, hidden: int = 8, scale: float = 0.3, seed: int = 0) -> Weights:
    """Random W1 and W2 with ``W2^T W2 = W1 W1^T``: hence of rank one, ``alpha z^T`` and ``||z|| alpha^T``.

    Parameters
    ----------
    model : SignalNoise
    hidden : int
        m.
    scale : float
        ``||z||``.
    seed : int

    Returns
    -------
    (W1, W2)
        (m, d) and (1, m), float64.
    """
    rng = np.random.default_rng(seed)
    alpha, z = rng.standard_normal(hidden), rng.standard_normal(model.inputs)
    alpha, z = alpha / np.linalg.norm(alpha), scale * z / np.linalg.norm(z)
    return np.outer(alpha, z), scale * alpha[None]


def unbalanced_start(model: SignalNoise, hidden: int = 8, scale: float = 0.3, seed: int = 0) -> Weights:
    """W1 and W2 of independent normal entries, of the Frobenius norms of `balanced_start`; its parameters."""
    rng = np.random.default_rng(seed)
    W1, W2 = rng.standard_normal((hidden, model.inputs)), rng.standard_normal((1, hidden))
    return scale * W1 / np.linalg.norm(W1), scale * W2 / np.linalg.norm(W2)


def flow(model: SignalNoise, W1: np.ndarray, W2: np.ndarray, time: float = 400.0, rtol: float = 1e-10) -> Flow:
    """Follow gradient flow on the population's loss.

    Parameters
    ----------
    model : SignalNoise
    W1, W2 : array
        The start, (m, d) and (1, m).
    time : float
        Noise weights that have an effect fall like ``exp(-sigma^2 ||W2||^2 time)``.
    rtol : float
        Relative tolerance of the integrator, a Runge-Kutta method of order 8 (SciPy's DOP853).

    Returns
    -------
    Flow

    Raises
    ------
    ValueError
        Shapes that do not fit, or an integration that failed.
    """
    from scipy.integrate import solve_ivp

    m, d = W1.shape[0], model.inputs
    if W1.shape != (m, d) or W2.shape != (1, m):
        raise ValueError(f"W1 and W2 must be of shapes (m, {d}) and (1, m); got {W1.shape} and {W2.shape}")
    b = model.signal

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        U, V = state[: m * d].reshape(m, d), state[m * d :]
        w = V @ U
        pull = b - (w @ b) * b - model.sigma**2 * w
        return np.concatenate([np.outer(V, pull).ravel(), U @ pull])

    start = np.concatenate([W1.ravel(), W2.ravel()])
    # an absolute tolerance far below what is looked for: weights that vanish must be followed to where they vanish
    found = solve_ivp(velocity, (0.0, time), start, "DOP853", t_eval=[time], rtol=rtol, atol=1e-25)
    if not found.success:
        raise ValueError(f"time must be one that the integrator can reach; it stopped: {found.message}")
    end = found.y[:, -1]
    U, V = end[: m * d].reshape(m, d), end[m * d :][None]
    least = 0.5 * (1 - float(model.best @ b))
    loss = model.loss(U, V)
    moved = (U @ U.T - V.T @ V) - (W1 @ W1.T - W2.T @ W2)
    return Flow(U, V, loss, loss - least, float(np.linalg.norm(U[:, len(model.v) :])), float(np.abs(moved).max()))

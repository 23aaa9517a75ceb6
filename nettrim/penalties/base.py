"""What a penalty on the weights must supply, and the dual bound that follows from it.

Derivation
----------
With a convex penalty Phi in the place of the l1 norm, a layer's program is ``min Phi(W)`` under the ball and the
half-spaces. For multipliers L with the signs that they must have, put ``H = X L^T`` and

    gain = -<L_Omega, Y> - <L_notOmega, V>,        b = ||L_Omega||_F.

Weak duality says that no feasible W has a smaller penalty than

    t gain - t epsilon b - Phi*(-t H)       for any t >= 0,

because t L are multipliers too. If Phi is a norm, its conjugate Phi* is 0 while the dual norm of t H is at most 1 and
infinite beyond: the bound takes the largest such t up to 1. Where Phi is a sum over the neurons each has a t of its
own. Every penalty here is even in W, so the sign of H does not matter.

All penalties take C, the weights of the problem: what C means for each is said there; entries with C = 0 are free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

__all__ = ["Norm", "Penalty", "ball_bound"]


class Penalty(ABC):
    """A convex, even penalty on N x M weights. Its classes are frozen: what a solve must remember is `memory`."""

    #: in files and messages
    name: str
    #: whether the penalty is a sum over the neurons, so that their multipliers may be scaled apart
    separable = False
    #: whether what counts is single entries, rather than groups
    entrywise = False
    #: whether reweighting has a meaning: the penalty stands for a count of entries or groups
    counts = False

    def check(self, C: np.ndarray, N: int, M: int) -> None:  # noqa: B027  most penalties take any weights
        """That weights C, broadcastable to (N, M), suit the penalty: if not, a ValueError that names what does not."""

    @abstractmethod
    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        """Phi(W), in float64."""

    @abstractmethod
    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        """The W with the least ``Phi(W) + ||W - B||_F^2 / (2 tau)``, in the dtype of B.

        `memory` is kept from call to call of one solve, for penalties whose prox is iterative and starts from the last.
        """

    @abstractmethod
    def bound(self, gain: np.ndarray, norms: np.ndarray, H: np.ndarray, C: np.ndarray, radii: np.ndarray) -> float:
        """Dual value of multipliers, scaled into the feasible set: no feasible W has a smaller penalty.

        Parameters
        ----------
        gain, norms : (M,) float64 arrays
            Of each neuron's multipliers: ``-<L_Omega, Y> - <L_notOmega, V>`` and ``||L_Omega||``.
        H : (N, M) array
            ``X L^T``.
        C : array
            Broadcastable to (N, M).
        radii : (1,) or (M,) array
            Of the common ball, or of each neuron's.
        """

    def start(self, size: float, C: np.ndarray, N: int, M: int) -> float:
        """A first tau for ADMM, whose prox moves weights of this mean size."""
        return size * self.spread(N, M) / _mean(C)

    def spread(self, N: int, M: int) -> float:
        """How many times larger a group's norm is than its entries."""
        return 1.0

    def size(self, W: np.ndarray) -> np.ndarray:
        """What reweighting charges for: |W|, or each entry's group norm; broadcastable to W.

        Raises
        ------
        ValueError
            The penalty does not stand for a count.
        """
        raise ValueError(f"reweighting needs a penalty that stands for a count; {self.name} does not")

    @abstractmethod
    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        """Phi as a cvxpy expression of the N x M variable W, with constraints on what further variables it has."""

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, for JSON; see `nettrim.penalties.make`."""
        return {"name": self.name}


class Norm(Penalty):
    """A penalty whose conjugate is zero or infinite: multipliers are scaled into the ball of the dual norm."""

    @abstractmethod
    def scales(self, H: np.ndarray, C: np.ndarray) -> np.ndarray:
        """The largest factors of at most 1 that bring H into the dual norm's ball: (M,) if separable, else (1,).

        Entries of H with C = 0 are taken to be zero.
        """

    def bound(self, gain: np.ndarray, norms: np.ndarray, H: np.ndarray, C: np.ndarray, radii: np.ndarray) -> float:
        """As `Penalty.bound`, these multipliers scaled by `scales`."""
        scale = self.scales(H, C)
        return ball_bound(gain * scale, norms * scale, radii, self.separable)


def ball_bound(gain: np.ndarray, norms: np.ndarray, radii: np.ndarray, separable: bool) -> float:
    """gain less the ball's share, summed; where neurons are apart the multiplier 0 may take the place of each one's."""
    if radii.size == 1:
        return max(float(gain.sum() - radii[0] * np.sqrt((norms**2).sum())), 0.0)
    values = gain - radii * norms
    return float(np.maximum(values, 0).sum()) if separable else max(float(values.sum()), 0.0)


def _mean(C: np.ndarray) -> float:
    """Of the weights that are not zero; 1 without any."""
    positive = C[C > 0]
    return float(positive.mean(dtype=np.float64)) if positive.size else 1.0


def ratio(a: Any, b: np.ndarray) -> np.ndarray:
    """a / b where b > 0, and 0 elsewhere, in float64."""
    a = np.asarray(a, np.float64)
    shape = np.broadcast_shapes(a.shape, np.shape(b))
    b = np.broadcast_to(b, shape)
    return np.divide(a, b, out=np.zeros(shape), where=b > 0)

"""Penalties that are a sum over the entries: l1, elastic net, ridge."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.backends.base import soft_threshold
from nettrim.penalties.base import Norm, Penalty, _mean, ratio

__all__ = ["L1", "ElasticNet", "Ridge"]

#: Newton steps on the scale of the multipliers, for a conjugate that is finite everywhere
STEPS = 6


@dataclass(frozen=True)
class L1(Norm):
    """``sum C |W|``, the penalty of Net-Trim and the default: the only one with working sets, a polish and a GPU."""

    name = "l1"
    separable = True
    entrywise = True
    counts = True

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        return float((C.astype(np.float64) * np.abs(W)).sum())

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        return soft_threshold(B, C * B.dtype.type(tau))

    def scales(self, H: np.ndarray, C: np.ndarray) -> np.ndarray:
        return 1 / np.maximum(ratio(np.abs(H), C).max(axis=0), 1)

    def size(self, W: np.ndarray) -> np.ndarray:
        return np.abs(W)

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        return cp.sum(cp.multiply(np.broadcast_to(C, W.shape), cp.abs(W))), []


class _Smooth(Penalty):
    """A sum over the entries whose conjugate is finite everywhere: no scaling is needed, and a good one is sought."""

    separable = True

    @abstractmethod
    def _conjugate(self, H: np.ndarray, C: np.ndarray, t: float) -> tuple[float, float, float]:
        """Phi*(t H), and its first and second derivative in t."""

    def bound(self, gain: np.ndarray, norms: np.ndarray, H: np.ndarray, C: np.ndarray, radii: np.ndarray) -> float:
        H, C = np.abs(H.astype(np.float64)), np.broadcast_to(C.astype(np.float64), H.shape)
        parts = [slice(None)] if radii.size == 1 else [slice(m, m + 1) for m in range(gain.size)]
        total = 0.0
        for m, part in enumerate(parts):
            reach = float(gain[part].sum() - radii[m] * np.sqrt((norms[part] ** 2).sum()))
            total += self._best(reach, H[:, part], C[:, part])
        return total

    def _best(self, reach: float, H: np.ndarray, C: np.ndarray) -> float:
        """The largest ``t reach - Phi*(t H)`` met by Newton's method from t = 1; every t gives a bound."""
        if reach <= 0:
            return 0.0
        t, best = 1.0, 0.0
        for _ in range(STEPS):
            value, slope, curvature = self._conjugate(H, C, t)
            best = max(best, t * reach - value)
            if curvature <= 0:
                # still inside the ball of the l1 part: further out the bound is larger
                t *= 2
                continue
            t = max(t + (reach - slope) / curvature, 0.1 * t)
        return best


@dataclass(frozen=True)
class ElasticNet(_Smooth):
    """``sum C (|W| + ridge / 2 W^2)``: sparse, and equal inputs share their weight (Zou, Hastie 2005).

    Parameters
    ----------
    ridge : float
        Larger than 0, in one over the units of the weights.
    """

    ridge: float
    name = "elastic_net"
    entrywise = True
    counts = True

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        size = np.abs(W.astype(np.float64))
        return float((C * (size + 0.5 * self.ridge * size**2)).sum())

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        threshold = C * B.dtype.type(tau)
        return soft_threshold(B, threshold) / (1 + B.dtype.type(self.ridge) * threshold)

    def _conjugate(self, H: np.ndarray, C: np.ndarray, t: float) -> tuple[float, float, float]:
        over = np.where(C > 0, np.maximum(t * H - C, 0), 0)
        share = ratio(1.0, self.ridge * C)
        active = over > 0
        return (
            float((over**2 * share).sum() / 2),
            float((H * over * share).sum()),
            float((H**2 * share)[active].sum()),
        )

    def size(self, W: np.ndarray) -> np.ndarray:
        return np.abs(W)

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        C = np.broadcast_to(C, W.shape)
        return cp.sum(cp.multiply(C, cp.abs(W))) + 0.5 * self.ridge * cp.sum(cp.multiply(C, cp.square(W))), []

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ridge": self.ridge}


@dataclass(frozen=True)
class Ridge(_Smooth):
    """``sum C / 2 W^2``: the smallest weights within the error; nothing becomes zero. A baseline for the others."""

    name = "ridge"

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        return float((0.5 * C * W.astype(np.float64) ** 2).sum())

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        return B / (1 + C * B.dtype.type(tau))

    def _conjugate(self, H: np.ndarray, C: np.ndarray, t: float) -> tuple[float, float, float]:
        curvature = float(ratio(H**2, C).sum())
        return 0.5 * t**2 * curvature, t * curvature, curvature

    def start(self, size: float, C: np.ndarray, N: int, M: int) -> float:
        # the prox divides: at 1 it halves
        return 1.0 / _mean(C)

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        return 0.5 * cp.sum(cp.multiply(np.broadcast_to(C, W.shape), cp.square(W))), []


def positive(name: str, value: Any) -> None:
    """That a parameter is a finite number larger than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be larger than 0 and finite; got {value}")

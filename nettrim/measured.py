"""Solutions of methods without a dual bound: what the weights do is measured and verified, not proved to be best."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nettrim.problem import Problem
from nettrim.solution import Solution, Status, certify

__all__ = ["Measured", "measured"]


@dataclass(frozen=True, repr=False)
class Measured(Solution):
    """A `Solution` whose status is ``measured``: its certificate has errors, violations and flips, and no dual bound.

    Attributes
    ----------
    heldout : float or None
        `Certificate.error` on samples that were held out.
    """

    heldout: float | None = None

    def __repr__(self) -> str:
        c, out = self.certificate, "" if self.heldout is None else f", held out {self.heldout:.4f}"
        took = self.seconds.get("total", 0)
        return f"Measured({self.settings.get('method')}, kept {c.density:.2%}, error {c.error:.4f}{out}, {took:.2f} s)"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        return super().to_dict() | {"heldout": self.heldout}


def measured(
    problem: Problem,
    W: np.ndarray,
    heldout: Problem | None,
    method: str,
    seconds: float,
    message: str = "",
    history: list[dict[str, Any]] | None = None,
    own_radius: bool = True,
    **more: Any,
) -> Measured:
    """Weights with what they do, as if the ball had the radius that they need (`own_radius`) or with the problem's."""
    began = time.perf_counter()
    certificate = certify(problem, W)
    if own_radius:
        certificate = replace(certificate, ball_ratio=1.0 if certificate.discrepancy > 0 else 0.0, ball_violation=0.0)
    out = None if heldout is None else certify(heldout, W).error
    took = time.perf_counter() - began
    return Measured(
        W=W,
        status=Status.MEASURED,
        certificate=certificate,
        iterations=len(history or []),
        seconds={"iterate": seconds, "certify": took, "total": seconds + took},
        message=message,
        history=history or [],
        settings={"method": method, "dtype": str(W.dtype), **more},
        heldout=out,
    )

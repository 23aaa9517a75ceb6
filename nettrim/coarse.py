"""First working sets, read off a few ADMM iterations on evenly spaced samples (see nettrim/working_set.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nettrim.admm import Check, Factor, Loop
from nettrim.operators import Dense
from nettrim.settings import Settings

__all__ = ["Start", "coarse_start", "work_ratio"]

#: samples of the coarse problem, its iterations at most, and the gap it is solved to
SAMPLES, ITERATIONS, GAP = 1000, 150, 0.15
#: active bounds a neuron may start with in any case
LEAST_BOUNDS = 10
#: `work_ratio`: final over coarse size of a neuron's system; flops of working sets per cube of it and per neuron;
#: iterations of ADMM at epsilon 0.1 and gap 1e-3, their growth per decade of the gap, and the price of a float32 flop
GROWTH, CUBE, NEURON, ADMM, DECADE, SINGLE = 1.8, 60.0, 3.4e8, 300.0, 3.0, 0.57
#: flops of working sets (some tenths of a second) below which there is nothing to choose
NOTHING = 2e10


@dataclass
class Start:
    """Weights (N, M), for each neuron the samples whose bound is active and mu times their multipliers, and mu.

    `mu` is 1 / lambda of the ball, (1,) or one for each neuron.
    """

    W: np.ndarray
    samples: list[np.ndarray]
    eta: list[np.ndarray]
    mu: np.ndarray
    warm: bool = False


def coarse_start(loop: Loop, stopped: Callable[[], str | None]) -> Start:
    """Start from a problem with fewer samples and the same relative radius.

    For the same weights the ball's multiplier lambda of Pc among P samples is P / Pc times that of the whole layer.

    Parameters
    ----------
    loop : Loop
        The whole layer, on the host.
    stopped : callable
        Asked at every iteration for a reason to stop; what has been found by then is returned.
    """
    M, P = loop.target.shape
    be, dtype = loop.backend, loop.dtype
    # the square root of a linear layer's moments has no samples to choose from, and few columns
    count = P if P <= SAMPLES or loop.mask.all() else SAMPLES
    index = np.linspace(0, P - 1, count).astype(int)
    operator = Dense(np.ascontiguousarray(loop.operator.X[:, index]), be, dtype)
    target, mask = np.ascontiguousarray(loop.target[:, index]), np.ascontiguousarray(loop.mask[:, index])
    upper = loop.upper if loop.upper.size == 1 else np.ascontiguousarray(loop.upper[:, index])
    coarse = Loop(operator, target, mask, upper, loop.weights, loop.radii, Factor(operator, be, dtype), be)
    sizes, whole = coarse.sizes, loop.sizes
    if loop.radii.size == 1:
        sizes, whole = np.array([np.linalg.norm(sizes)]), np.array([np.linalg.norm(whole)])
    coarse.radii = loop.radii * np.divide(sizes, whole, out=np.ones_like(whole), where=whole > 0)
    found: list[Check] = []

    def accept(check: Check) -> bool:
        if check.last or abs(check.gap) <= GAP:
            found.append(check)
            L = check.multiplier()
            start.W, squares = check.weights, be.multiplier_sums(L, target, mask, upper)[:, 1]
            if coarse.radii.size == 1:
                squares = squares.sum(keepdims=True)
            # on Omega the multipliers are the residuals over mu
            mu = np.divide(coarse.radii, np.sqrt(squares), out=np.ones_like(squares), where=squares > 0)
            per_neuron = np.repeat(mu, M // mu.size)
            for m in range(M):
                active = np.flatnonzero(~mask[m] & (L[m] > 0))
                # near w = 0 all bounds are active: as many as there are weights tell them apart
                most = max(LEAST_BOUNDS, np.count_nonzero(start.W[:, m]))
                active = active[np.argsort(-L[m, active])[:most]]
                start.samples.append(index[active])
                start.eta.append(L[m, active].astype(np.float64) * per_neuron[m])
            start.mu = mu * (P / count)
        return bool(found)

    start = Start(np.zeros((loop.operator.shape[0], M), dtype), [], [], np.ones(coarse.radii.size))
    coarse.run(coarse.start(), Settings(max_iterations=ITERATIONS), accept, stopped, lambda check: None)
    return start


def work_ratio(start: Start, loop: Loop, settings: Settings) -> float:
    """Estimated time of working sets over that of ADMM, from the sizes of the first supports; 0 for small problems.

    A neuron whose system ends with m rows costs about c m^3 + d: its path has about 2 m kinks of O(m^2) each; and its
    products cost m^2 a sample. The constants were fitted to 12 layers and radii of an MNIST network on two cores.
    """
    (M, P), N = loop.target.shape, loop.operator.shape[0]
    supports = np.count_nonzero(start.W, axis=0)
    m = np.minimum(GROWTH * (supports + np.array([s.size for s in start.samples])), 2 * N)
    exact = float((CUBE * m**3 + NEURON).sum())
    if not loop.mask.all():
        exact += float((m**2 * loop.mask.sum(1)).sum())
    if exact < NOTHING:
        return 0.0
    relative = float(np.linalg.norm(np.broadcast_to(loop.radii, M if loop.radii.size > 1 else 1)))
    relative /= float(np.linalg.norm(loop.sizes)) or 1.0
    iterations = ADMM * np.sqrt(0.1 / max(relative, 1e-4)) if relative < 0.1 else ADMM
    iterations *= 1 + DECADE * max(np.log10(1e-3 / settings.gap_tol), 0)
    first_order = iterations * (4.0 * N * M * P + 2.0 * N * N * M + 1e7)
    return exact / (first_order * (SINGLE if loop.dtype == np.float32 else 1.0))

"""First working sets, read off a few ADMM iterations, and the time they are likely to take (nettrim/working_set.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nettrim.admm import Check, Factor, Loop
from nettrim.operators import Dense
from nettrim.samples import Resident
from nettrim.settings import Settings

__all__ = [
    "Start",
    "coarse_start",
    "exact_work",
    "iteration_work",
    "iterations",
    "read_start",
    "relative_radius",
    "start_at",
    "whole_start",
]

#: samples of the coarse problem, its iterations at most, and the gap it is solved to
SAMPLES, ITERATIONS, GAP = 1000, 150, 0.15
#: the ratio of two radii up to which a start for one is as good as one for the other
CLOSE = 1.1
#: and from which on it is no good at all
FAR = 2.5
#: inputs up to which the neurons of a linear layer start with all of them (with 101 that took 0.6 to 0.8 of the time,
#: with 301 up to 1.7 times as long)
WHOLE = 128
#: active bounds a neuron may start with: this part of the number of its weights, and this many in any case
BOUNDS_PART, LEAST_BOUNDS = 3, 10
#: flops of working sets per cube of a neuron's system and per neuron, from a start on a part of the samples, and its
#: final size over that of this start; and the same from a start on all samples
COARSE, FINE = (60.0, 3.4e8, 2.3), (10.0, 2.5e8, 1.1)
#: iterations of ADMM at epsilon 0.1 and gap 1e-3, their growth per decade of the gap, and the price of a float32 flop
ADMM, DECADE, SINGLE = 300.0, 3.0, 0.57


@dataclass
class Start:
    """Weights (N, M), for each neuron the samples whose bound is active and mu times their multipliers, and mu.

    `mu` is 1 / lambda of the ball, (1,) or one for each neuron. `warm` says that these were solved for a ball of the
    radius `radius` (of all neurons together), or for the one at hand if that is None; `whole`, that all inputs are in
    the sets, so that none is missing.
    """

    W: np.ndarray
    samples: list[np.ndarray]
    eta: list[np.ndarray]
    mu: np.ndarray
    warm: bool = False
    radius: float | None = None
    whole: bool = False

    def far_from(self, radius: float) -> bool:
        """Whether a new start is better for a ball of this radius."""
        ratio = radius / self.radius if self.warm and self.radius else 1.0
        return not 1 / FAR <= ratio <= FAR

    def towards(self, radius: float) -> Start:
        """The start for another radius: its mu in proportion, and no longer warm unless the two are close.

        Sets that were complete for one ball lack inputs for a much smaller one. Taken as complete, mu would follow a
        ball that is out of reach.
        """
        if not self.warm or self.radius is None or self.radius <= 0 or radius <= 0:
            return self
        ratio = radius / self.radius
        if 1 / CLOSE <= ratio <= CLOSE:
            return self
        return replace(self, mu=self.mu * ratio, warm=False)


def whole_start(loop: Loop) -> Start:
    """Start of a linear layer at W = 0, with all inputs in the sets.

    Its neurons share X X^T, of which nothing has to be gathered, and no round has to find what is missing. Weights
    enter below mu = max |x_i^T y| / C, where a neuron's residual is ||y||. From there it falls more slowly than mu
    does, so that a mu in proportion to the radius is above the one sought, on the side with fewer weights.
    """
    samples, (N, M, _) = loop.samples, loop.samples.shape
    C = np.broadcast_to(loop.weights, (N, M))
    b = np.abs(samples.target_product()).astype(np.float64)
    largest = np.divide(b, C, out=np.zeros((N, M)), where=C > 0).max(0)
    sizes = loop.sizes
    if loop.radii.size == 1:
        largest, sizes = largest.max(keepdims=True), np.array([np.linalg.norm(sizes)])
    relative = np.divide(loop.radii, sizes, out=np.ones_like(sizes), where=sizes > loop.radii)
    mu = np.where(largest > 0, largest * relative, 1.0)
    empty = [np.empty(0, np.int64) for _ in range(M)], [np.empty(0) for _ in range(M)]
    return Start(np.zeros((N, M), loop.dtype), *empty, mu, warm=True, whole=True)


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
    P = loop.samples.target.shape[1]
    # the square root of a linear layer's moments has no samples to choose from, and few columns
    count = P if P <= SAMPLES or loop.samples.mask.all() else SAMPLES
    index = np.linspace(0, P - 1, count).astype(int)
    coarse = loop if count == P else _part(loop, index)
    found: list[Start] = []

    def accept(check: Check) -> bool:
        if check.last or abs(check.gap) <= GAP:
            found.append(read_start(coarse, check, index))
        return bool(found)

    coarse.run(coarse.start(), Settings(max_iterations=ITERATIONS), accept, stopped, lambda check: None)
    found[0].mu *= P / count
    return found[0]


def _part(loop: Loop, index: np.ndarray) -> Loop:
    """The layer with some of its samples, and radii in proportion to the outputs."""
    be, dtype, given = loop.backend, loop.dtype, loop.samples

    def columns(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a[:, index])

    operator = Dense(np.ascontiguousarray(given.operator.columns(index)), be, dtype)
    upper = given.upper if given.upper.size == 1 else columns(given.upper)
    samples = Resident(operator, columns(given.target), columns(given.mask), upper, be)
    part = Loop(samples, loop.weights, loop.radii, Factor(operator, be, dtype))
    sizes, whole = part.sizes, loop.sizes
    if loop.radii.size == 1:
        sizes, whole = np.array([np.linalg.norm(sizes)]), np.array([np.linalg.norm(whole)])
    part.radii = loop.radii * np.divide(sizes, whole, out=np.ones_like(whole), where=whole > 0)
    return part


def read_start(loop: Loop, check: Check, index: np.ndarray | None = None, solved: bool = False) -> Start:
    """Start from a check of ADMM; `index` are the loop's samples among those of the layer, all by default.

    `solved` says that the check may be a solution, whose neurons have as many active bounds as weights at most.
    """
    M = loop.samples.target.shape[0]
    L = check.multiplier()
    squares = loop.samples.multiplier_sums(L)[:, 1]
    if loop.radii.size == 1:
        squares = squares.sum(keepdims=True)
    # on Omega the multipliers are the residuals over mu
    mu = np.divide(loop.radii, np.sqrt(squares), out=np.ones_like(squares), where=squares > 0)
    per_neuron = np.repeat(mu, M // mu.size)
    samples, eta, exact = [], [], solved
    for m in range(M):
        active = np.flatnonzero(~loop.samples.mask[m] & (L[m] > 0))
        # small multipliers are noise (near w = 0 all bounds have one), and what is missing joins more cheaply than
        # what is too much leaves
        support = int(np.count_nonzero(check.weights[:, m]))
        most = max(LEAST_BOUNDS, support // BOUNDS_PART)
        if solved and active.size <= support:
            most = support
        exact = exact and bool(active.size <= support)
        active = active[np.argsort(-L[m, active])[:most]]
        samples.append(active if index is None else index[active])
        eta.append(L[m, active].astype(np.float64) * per_neuron[m])
    return Start(check.weights, samples, eta, mu, warm=exact)


def start_at(loop: Loop, W: np.ndarray, multiplier: np.ndarray | None) -> Start:
    """Start from weights and, if there are any, multipliers (M, P) of an earlier solution.

    Without multipliers, mu follows from the weights: the residual on Omega over mu is dual feasible, so that its
    product with an input in use is mu times that weight's penalty.
    """
    if multiplier is not None:
        check = Check(0, 0.0, 0.0, 0.0, 0.0, W, lambda: multiplier.astype(loop.dtype, copy=False))
        return read_start(loop, check, solved=True)
    samples = loop.samples
    operator = samples.operator
    R = operator.forward(W, np.empty(samples.target.shape, loop.dtype)) - samples.target
    R[~samples.mask] = 0
    C = np.broadcast_to(loop.weights, W.shape)
    used = (W != 0) & (C > 0)
    ratio = np.abs(operator.adjoint(R))[used] / C[used]
    mu = float(np.median(ratio)) if ratio.size else float(loop.radii.max())
    M = W.shape[1]
    empty = [np.empty(0, np.int64) for _ in range(M)], [np.empty(0) for _ in range(M)]
    return Start(W, *empty, np.full(loop.radii.size, max(mu, np.finfo(loop.dtype).tiny)))


def exact_work(start: Start, loop: Loop, constants: tuple[float, float, float]) -> float:
    """Estimated flops of working sets from a start, with the constants `COARSE` or `FINE` for its kind.

    A neuron whose system ends with m rows costs about c m^3 + d: its path has kinks in proportion to m, of O(m^2)
    each; and its products cost m^2 a sample. `COARSE` was fitted to 12 layers and radii of an MNIST network on two
    cores, `FINE` to the three radii of the layer there that starts so.
    """
    cube, neuron, growth = constants
    supports = np.count_nonzero(start.W, axis=0)
    sizes = growth * (supports + np.array([s.size for s in start.samples]))
    m = np.minimum(sizes, 2 * loop.samples.operator.shape[0])
    work = float((cube * m**3 + neuron).sum())
    if not loop.samples.mask.all():
        work += float((m**2 * loop.samples.mask.sum(1)).sum())
    return work


def iteration_work(loop: Loop) -> float:
    """Flops of an iteration of ADMM, in the time of float64 ones."""
    (M, P), N = loop.samples.target.shape, loop.samples.operator.shape[0]
    return (4.0 * N * M * P + 2.0 * N * N * M + 1e7) * (SINGLE if loop.dtype == np.float32 else 1.0)


def relative_radius(loop: Loop) -> float:
    """epsilon over ||Y_Omega||."""
    radius = np.linalg.norm(np.broadcast_to(loop.radii, loop.samples.shape[1] if loop.radii.size > 1 else 1))
    return float(radius) / (float(np.linalg.norm(loop.sizes)) or 1.0)


def iterations(relative: float, gap_tol: float) -> float:
    """Estimated iterations of ADMM for a radius relative to ||Y_Omega|| and a tolerance."""
    count = ADMM * np.sqrt(0.1 / max(relative, 1e-4)) if relative < 0.1 else ADMM
    return float(count * (1 + DECADE * max(np.log10(1e-3 / gap_tol), 0)))

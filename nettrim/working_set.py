"""Working sets: exact neurons on few inputs and few bounds, the ball's level, and checks against the whole layer.

Derivation
----------
Only the ball couples the neurons. For a fixed multiplier lambda = 1 / mu of the ball, neuron m solves

    minimise    mu sum_i C_im |w_i| + 1/2 || X_Omega^T w - y ||^2      subject to   X_notOmega^T w <= v

and mu is one number: the ball's residual q(mu) = sum_m ||r_m||^2 grows with mu, and q(mu) = epsilon^2 at the optimum.
At the optimum a neuron uses few inputs and few of its bounds are active, so it is solved on a working set F of inputs
and A of samples, with the float64 matrices G = X_F X_F^T over Omega and X_FA. While its support and active bounds stay
the same, w = w0 - mu w1 and ||r||^2 = c + mu^2 a exactly, so the ball's equation is solved in closed form.

A round solves all neurons, adjusts mu, and checks the whole layer with two products, Z = W^T X and H = X L^T for
L = (Z - Y on Omega, the bounds' multipliers on A): inputs with |H| > mu C and samples with Z > v join the sets. When
none do, every optimality condition holds, L / mu is dual feasible and the gap is zero.

Implementation
--------------
The neurons are solved by kernels/active_set.py and kernels/path.py, one a thread, BLAS held to one thread each. While
inputs are missing the ball cannot be reached at the right mu, and a mu that follows it would run away: an unsettled
round changes mu once, by a part of what the ball's equation asks for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from nettrim.admm import Check, Loop
from nettrim.coarse import Start
from nettrim.settings import Settings
from nettrim.threads import Serial, limit

__all__ = ["WorkingSet"]

#: rounds at most, and rounds in a row in which nothing joins the sets and the tolerances are not met
MAX_ROUNDS, IDLE = 60, 2
#: a round is settled when the last one added less than this fraction of the inputs, and of the samples, in the sets
SETTLED = 0.1
#: the power of the factor that the ball's equation asks for by which mu changes in an unsettled round
DAMPING = 0.3
#: times a settled round solves the neurons, and the largest factor of one change of mu in either kind of round
LEVELS, LEVEL_FACTOR = 12, (2.5, 10.0)
#: the least power of mu that q is taken to fall by
LEAST_POWER = 0.2
#: relative error of the ball's radius that is left alone, as a fraction of the last gap
NEEDLESS = 0.01
#: corrections by whole blocks of what a path has left, without its shift
ATTEMPTS = 3
#: relative shifts of the systems of the paths that are followed for a neuron, until one ends where it should
SHIFTS = (1e-7, 1e-6, 1e-8)
#: relative stationarity that the neurons are solved to in an unsettled round
ROUGH = 1e-4
#: part of the gap asked that a neuron which is taken to be zero may cost
ZERO = 0.01
#: a neuron's sets grow by the size of its support (of its watched samples) in a round, but by this many in any case
LEAST = 40
#: mu at which a ball that is still out of reach counts as infeasible, relative to the first one
VANISHED = 1e-9
#: bytes of matrices that are kept for the next solve
KEPT_BYTES = 256e6


class _Neuron:
    """A neuron's sets, matrices and present solution (see kernels/active_set.py for the names)."""

    def __init__(self, inputs: np.ndarray, samples: np.ndarray, w: np.ndarray, eta: np.ndarray):
        self.inputs, self.samples = inputs.astype(np.int64), samples.astype(np.int64)
        self.w, self.eta = w.astype(np.float64), eta.astype(np.float64)
        self.G, self.A = np.zeros((0, 0)), np.zeros((0, 0))
        self.path_w, self.path_eta = np.zeros((2, w.size)), np.zeros((2, eta.size))
        self.exact, self.zero, self.c, self.a = False, False, np.inf, 0.0
        self.size, self.basis, self.inverse = 0.0, np.empty(0, np.int64), np.empty((0, 0))

    def add(self, inputs: np.ndarray, samples: np.ndarray) -> None:
        n, k = inputs.size, samples.size
        self.inputs = np.concatenate([self.inputs, inputs])
        self.samples = np.concatenate([self.samples, samples])
        self.w, self.eta = np.append(self.w, np.zeros(n)), np.append(self.eta, np.zeros(k))
        self.path_w = np.hstack([self.path_w, np.zeros((2, n))])
        self.path_eta = np.hstack([self.path_eta, np.zeros((2, k))])

    @property
    def bytes(self) -> float:
        """Of G and A, once they have grown to the sets, and of the kept inverse."""
        return 8.0 * self.inputs.size * (self.inputs.size + self.samples.size) + self.inverse.nbytes


class WorkingSet:
    """The method on one problem's arrays.

    Parameters
    ----------
    loop : Loop
        The layer's arrays, on the host, and its products.
    settings : Settings
    n_threads : int
        Neurons solved at a time.
    stopped : callable
        Asked between neurons for a reason to stop.
    earlier : WorkingSet, optional
        An earlier run on the same X and Omega, whose products are used again.
    budget : float
        What paths may take, in flops of matrix products of the same time, before another method should go on.
    """

    #: rounds in a row without progress, after which nothing more is expected
    patience = IDLE

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        n_threads: int,
        stopped: Callable[[], str | None],
        earlier: WorkingSet | None = None,
        budget: float = np.inf,
    ):
        self.budget, self.spent = budget, 0.0
        self._lock = threading.Lock()
        self.loop, self.settings, self.n_threads, self.stopped = loop, settings, n_threads, stopped
        self.operator = loop.samples.operator
        self.N, self.M, _ = loop.samples.shape
        self.C = np.broadcast_to(loop.weights, (self.N, self.M)).astype(np.float64)
        self.radii, self.squares = loop.radii, loop.sizes**2
        self.linear = bool(loop.samples.mask.all())
        self.b = self._right_hand_sides()
        self.inside = None if self.linear else [np.flatnonzero(row) for row in loop.samples.mask]
        # an entry's share of the tolerance, were all outputs as far over their bounds; what is over them is gained, too
        share = 0.1 * min(settings.feas_tol, 10 * settings.gap_tol)
        self.level = share * float(np.sqrt(self.squares.sum() / loop.samples.target.size))
        # a neuron's share of the gap, in the units of its program, that rounding may cost
        self.share = ZERO * settings.gap_tol * float(np.linalg.norm(self.radii) * np.sqrt(self.squares.sum()))
        self.neurons: list[_Neuron] = []
        self.counts = {"systems": 0, "kinks": 0}
        self.phases = {"gram": 0.0, "neurons": 0.0, "check": 0.0}
        self._earlier = earlier.neurons if earlier is not None else None

    def run(
        self,
        start: Start,
        accept: Callable[[Check], bool],
        observe: Callable[[Check], str | None],
    ) -> tuple[str, int]:
        """Rounds until `accept` is true or a reason to stop; returns the reason and the number of rounds.

        Reasons are "accepted", those of `stopped` and `observe`, "max_iterations", and four after which another method
        should go on: "memory", "budget", "out of reach" (the ball at a vanishing mu) and "precision" (nothing is left
        to add, yet the tolerances are not met).
        """
        began = time.perf_counter()
        balls = self.radii.size
        start = start.towards(float(np.linalg.norm(self.radii)))
        # a start for the common ball serves the neurons' own, and their mean the common one
        mu = start.mu if start.mu.size == balls else np.full(balls, np.exp(np.log(start.mu).mean()))
        self.mu, self.gap = mu.astype(np.float64), 0.0 if start.warm else 1.0
        self.upcoming, self.ball = self.mu, np.inf
        first = self.mu.copy()
        self._begin(start)
        rounds = min(MAX_ROUNDS, self.settings.max_iterations)
        added, watched = (0, 0) if start.warm else (self.N * self.M, 0)
        idle, best = 0, np.inf
        for k in range(1, rounds + 1):
            if sum(n.bytes for n in self.neurons) > self.settings.memory_limit:
                return "memory", k - 1
            self.mu = self.upcoming
            settled = self._settled(added, watched)
            with self._workers() as pool:
                self._timed("gram", lambda pool: list(pool.map(self._grow, range(self.M))), pool)
                reached = self._timed("neurons", self._find_level, pool, settled)
                if self.spent > self.budget and not self.stopped():
                    # some neurons were left out
                    return "budget", k - 1
                check, added, watched = self._timed("check", self._check, pool, k, began)
            reason = self.stopped() or ("max_iterations" if k == self.settings.max_iterations else None)
            check.last = reason is not None
            if accept(check):
                return "accepted", k
            reason = reason or observe(check)
            if reason:
                return reason, k
            error = abs(check.gap) + check.violation
            idle = idle + 1 if settled and added + watched == 0 and error > 0.5 * best else 0
            best = min(best, error)
            if idle == self.patience:
                return "precision", k
            if settled and added + watched == 0 and not reached and (self.mu <= VANISHED * first).any():
                return "out of reach", k
            self._advance(check, not settled or added + watched > 0, reached)
        return "precision", rounds

    def _advance(self, check: Check, changed: bool, reached: bool) -> None:
        """After a round that was not the last; `changed` if it was unsettled or the sets grew."""

    @contextlib.contextmanager
    def _workers(self) -> Iterator[Executor]:
        """Threads for the neurons, with BLAS held to one in each."""
        if self.n_threads == 1:
            # so is BLAS: small layers would wait longer for a thread than for its work
            yield Serial()
            return
        with limit(1), ThreadPoolExecutor(self.n_threads) as pool:
            yield pool

    def _settled(self, added: int, watched: int) -> bool:
        """Whether the last round changed little, so that this one may meet the ball."""
        inputs, samples = (sum(getattr(n, name).size for n in self.neurons) for name in ("inputs", "samples"))
        return added <= SETTLED * inputs and watched <= SETTLED * samples + self.M

    def state(self) -> Start:
        """Where a further run may start."""
        W = np.zeros((self.N, self.M), self.loop.dtype)
        for m, n in enumerate(self.neurons):
            W[n.inputs, m] = n.w
        active = [np.flatnonzero(n.eta) for n in self.neurons]
        samples = [n.samples[a] for n, a in zip(self.neurons, active, strict=True)]
        eta = [n.eta[a] for n, a in zip(self.neurons, active, strict=True)]
        return Start(W, samples, eta, self.mu, warm=True, radius=float(np.linalg.norm(self.radii)))

    def release(self) -> WorkingSet | None:
        """What a later run on the same X and Omega may use again, if it is small enough to keep."""
        if sum(n.bytes for n in self.neurons) > KEPT_BYTES:
            return None
        return self

    # sets and their matrices

    def _right_hand_sides(self) -> np.ndarray:
        """X Y^T over Omega, (N, M) in float64, a chunk of samples at a time."""
        loop, total = self.loop, np.zeros((self.N, self.M))
        P = loop.samples.target.shape[1]
        step = max(1, (16 << 20) // (8 * (self.N + self.M)))
        for start in range(0, P, step):
            s = slice(start, min(start + step, P))
            total += loop.backend.product(self.operator.columns(s).astype(np.float64), self._target(s).T)
        return total

    def _target(self, s: slice) -> np.ndarray:
        """Y on Omega and zero elsewhere, of some samples, in float64."""
        samples = self.loop.samples
        return np.where(samples.mask[:, s], samples.target[:, s], 0).astype(np.float64)

    def _begin(self, start: Start) -> None:
        for m in range(self.M):
            samples, eta = start.samples[m], start.eta[m]
            watched = ~self.loop.samples.mask[m, samples] & np.isfinite(self._bounds(m, samples))
            inputs = np.flatnonzero((start.W[:, m] != 0) | (self.C[:, m] == 0) | start.whole)
            old = self._earlier[m] if self._earlier is not None else None
            if old is not None:
                # its products are known: its inputs come first, in the same order
                inputs = np.concatenate([old.inputs, np.setdiff1d(inputs, old.inputs)])
            neuron = _Neuron(inputs, samples[watched], start.W[inputs, m], eta[watched])
            if old is not None:
                neuron.G = old.G
            elif start.whole:
                neuron.G = self._gram()
            self.neurons.append(neuron)
        self._earlier = None

    def _bounds(self, m: int, samples: np.ndarray) -> np.ndarray:
        """V of a neuron's samples, in float64."""
        upper = self.loop.samples.upper
        if upper.size == 1:
            return np.full(samples.size, upper[0, 0], np.float64)
        return upper[m, samples].astype(np.float64)

    def _grow(self, m: int) -> None:
        """Matrices of the neuron's sets; what was known of G is kept."""
        n = self.neurons[m]
        old, size = n.G.shape[0], n.inputs.size
        if size > old:
            if self.linear:
                n.G = np.ascontiguousarray(self._gram()[np.ix_(n.inputs, n.inputs)])
            else:
                G = np.empty((size, size))
                G[:old, :old] = n.G
                self.operator.gather_products(self.inside[m], n.inputs, old, G)
                n.G = G
        if n.A.shape != (size, n.samples.size):
            n.A = np.empty((size, n.samples.size))
            self.operator.gather_columns(n.inputs, n.samples, n.A)

    def _gram(self) -> np.ndarray:
        """X X^T of a linear layer, the same for all neurons."""
        if self.operator.direct:
            return self.loop.factor.gram
        if not hasattr(self, "_products"):
            X = self.operator.rows.astype(np.float64)
            self._products = X @ X.T
        return self._products

    # the neurons

    def _solve(self, m: int, mu: float, tol: float) -> None:
        from nettrim.kernels import active_set, path, systems

        if self.spent > self.budget or self.stopped():
            return
        n = self.neurons[m]
        if n.inputs.size == 0:
            n.exact, n.c, n.a = True, float(self.squares[m]), 0.0
            n.eta[:] = 0
            return
        b, C, v, yy = self.b[n.inputs, m], self.C[n.inputs, m], self._bounds(m, n.samples), float(self.squares[m])

        def exact(attempts: int) -> bool:
            verified, systems, c, a = active_set.exact(
                n.G, b, yy, C, n.A, v, mu, n.path_w, n.path_eta, n.w, n.eta, tol, self.level, attempts
            )
            self.counts["systems"] += systems
            if verified:
                n.c, n.a = c, a
            return verified

        def zero() -> bool:
            # without bounds nothing is dependent there, and a path arrives
            return v.size > 0 and self._is_zero(n, b, C, v, mu, yy)

        n.exact = exact(0)
        n.zero = not n.exact and zero()
        # a path through dependent sets loses digits; one that starts at its end is short, and finds them again
        for shift in () if n.exact or n.zero else SHIFTS:
            before = n.w.copy(), n.eta.copy()
            # no more bounds are active at once than there are inputs: a path that turns more often goes in circles
            most = 10 * (n.w.size + min(n.eta.size, n.w.size)) + 100
            work = np.array([0.0, self.budget - self.spent])
            # the unit stays, so that the inverse does
            n.size = n.size or systems.rms_norm(n.G, n.A)
            start = n.path_w, n.path_eta, n.w, n.eta
            _, kinks, n.basis, n.inverse = path.follow(
                n.G, b, C, n.A, v, mu, *start, self.level, n.size, shift, n.basis, n.inverse, most, work
            )
            self._spend(kinks, work[0])
            # w = 0, if the bounds allow it, costs ||y||^2 / 2: a path that ends above that has lost all digits
            most_cost = 0.5 * yy * (1 + 1e-6) if v.min(initial=0) >= 0 else np.finfo(float).max
            if not mu * float(C @ np.abs(n.w)) + 0.5 * systems.square(n.G, b, yy, n.w) <= most_cost:
                n.w, n.eta = before
                n.basis, n.inverse = np.empty(0, np.int64), np.empty((0, 0))
            n.exact = exact(0)
            # where bounds are dependent (near w = 0 all are) there may be none without the shift
            if n.exact or active_set.optimal(n.G, b, C, n.A, v, mu, n.w, n.eta, tol, self.level):
                break
            n.zero = zero()
            n.exact = not n.zero and exact(ATTEMPTS)
            if n.zero or n.exact:
                break
        if n.zero:
            n.c, n.a = yy, 0.0
        elif not n.exact:
            n.c, n.a = active_set.nearby(n.G, b, yy, mu, n.path_w, n.w)

    def _spend(self, kinks: int, work: float) -> None:
        """Count what a path took, neurons being solved beside each other."""
        with self._lock:
            self.counts["kinks"] += kinks
            self.spent += work

    def _is_zero(self, n: _Neuron, b: np.ndarray, C: np.ndarray, v: np.ndarray, mu: float, yy: float) -> bool:
        """Whether w = 0, near which all bounds of a ReLU are dependent, is as good as optimal by the multipliers.

        Multipliers that are feasible up to a factor 1 + d bound the neuron's part of the gap by about d ||y||^2.
        """
        if v.min(initial=0) < 0:
            return False
        allowed = mu * C
        # relative to each input's own cost, as the bound is scaled; what costs nothing is balanced by the certificate
        allowed = np.where(allowed > 0, allowed, allowed.max() or 1.0)
        over = float(((np.abs(n.A @ n.eta - b) - mu * C) / allowed).max())
        return max(over, 0.0) * yy + float(v @ n.eta) <= self.share

    def _find_level(self, pool: Executor, settled: bool) -> bool:
        """Solve the neurons and move mu towards the ball; whether it was met. An unsettled round moves mu once."""
        s, radii = self.settings, self.radii
        tol = 0.01 * s.gap_tol if settled else max(ROUGH, 0.01 * s.gap_tol)
        # while the sets still grow, a ball met more closely than the gap is met in vain
        aim = max(min(0.1 * s.feas_tol, 0.01 * s.gap_tol), NEEDLESS * self.gap)
        factor = LEVEL_FACTOR[settled]
        low, high = np.zeros_like(self.mu), np.full_like(self.mu, np.inf)
        todo = np.arange(self.M)
        done = np.zeros(radii.size, bool)
        self.upcoming = self.mu
        for step in range(LEVELS if settled else 1):
            mu = np.repeat(self.mu, self.M // self.mu.size)
            list(pool.map(lambda m, mu=mu: self._solve(m, mu[m], tol), todo.tolist()))
            q, c, a, zero = self._residuals(mu)
            reached = np.sqrt(q)
            self.ball = float((reached / radii).max())
            # a ball that W = 0 does not fill asks nothing
            done = (np.abs(reached - radii) <= aim * radii) | (zero & (reached < radii))
            over = self.spent > self.budget
            if done.all() or (settled and step + 1 == LEVELS) or over or self.stopped():
                break
            above = reached > radii
            high = np.where(above, np.minimum(high, self.mu), high)
            low = np.where(above, low, np.maximum(low, self.mu))
            # without weights nothing answers to mu yet
            blind = np.where(above, 0, np.inf)
            new = np.sqrt(np.divide(np.maximum(radii**2 - c, 0), a, out=blind, where=a > 0))
            if settled:
                # weights that are still to enter lower c: where it alone is too much, q goes on as a power of mu
                power = np.divide(2 * a * self.mu**2, q, out=np.ones_like(q), where=q > 0)
                fall = self.mu * (radii / np.where(above, reached, radii)) ** (2 / np.maximum(power, LEAST_POWER))
                new = np.where(above & (c >= radii**2), fall, new)
            new = np.clip(new, self.mu / factor, self.mu * factor)
            if not settled:
                new = self.mu * (new / self.mu) ** DAMPING
            # q(mu) is monotone on fixed sets: a step out of the bracket is halved in the logarithm
            bracketed = np.isfinite(high) & (low > 0)
            middle = np.sqrt(low * np.where(bracketed, high, 1))
            new = np.where(bracketed & ((new <= low) | (new >= high)), middle, new)
            new = np.where(done, self.mu, new)
            if not settled:
                # the next round's: what is solved at this mu is checked first
                self.upcoming = new
                break
            self.mu = self.upcoming = new
            if radii.size > 1:
                todo = np.flatnonzero(~done)
        return bool(done.all())

    def _residuals(self, mu: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """For each ball q, and c and a with q = c + mu^2 a nearby, and whether all its weights are zero."""
        c, a = np.array([n.c for n in self.neurons]), np.array([n.a for n in self.neurons])
        zero = np.array([n.zero or not n.w.any() for n in self.neurons])
        # a residual of nearly nothing may have come out below zero
        q = np.maximum(c + a * mu**2, 0)
        if self.mu.size > 1:
            return q, c, a, zero
        return q.sum(keepdims=True), c.sum(keepdims=True), a.sum(keepdims=True), zero.all(keepdims=True)

    # the layer

    def _check(self, pool: Executor, k: int, began: float) -> tuple[Check, int, int]:
        """The round's check, and the numbers of inputs and samples that joined the sets."""
        from nettrim.kernels import active_set

        loop = self.loop
        W = np.zeros((self.N, self.M), loop.dtype)
        for m, n in enumerate(self.neurons):
            W[n.inputs, m] = n.w if n.exact else 0 if n.zero else active_set.tidy(n.A, n.w, self.level)
        Z = self.operator.forward_on(pool, self.n_threads, W)
        judged = list(pool.map(lambda m: self._judge(m, Z[m]), range(self.M)))
        H = self.operator.adjoint_on(pool, self.n_threads, Z)
        mu = np.repeat(self.mu, self.M // self.mu.size)
        objective, dual = loop.bound(W, H, loop.samples.multiplier_sums(Z), 1 / mu)
        size = max(abs(objective), abs(dual))
        gap = (objective - dual) / size if size > 0 else 0.0
        self.gap = min(abs(gap), 1.0)
        rows, excess = np.array([j[1] for j in judged]), float(sum(j[2] for j in judged))
        with np.errstate(over="ignore"):
            # a level that runs away is refused by the certificate
            scale = (1 / mu).astype(loop.dtype)
        check = Check(k, objective, dual, gap, time.perf_counter() - began, W, lambda: Z * scale[:, None])
        check.violation = loop.relative_violation(rows, excess)
        check.details = {
            "inputs": sum(n.inputs.size for n in self.neurons),
            "bounds": sum(n.samples.size for n in self.neurons),
            "kinks": self.counts["kinks"],
            "ball": self.ball,
        }
        added = watched = 0
        for m, n in enumerate(self.neurons):
            over = np.abs(H[:, m]) - mu[m] * self.C[:, m] * (1 + 0.01 * self.settings.gap_tol)
            over[n.inputs] = 0
            inputs, samples = _worst(over, max(LEAST, int(np.count_nonzero(n.w)))), judged[m][0]
            n.add(inputs, samples)
            added, watched = added + inputs.size, watched + samples.size
        return check, added, watched

    def _judge(self, m: int, z: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Turn a neuron's outputs into mu times its multipliers; samples to watch, squared residual and excess."""
        from nettrim.kernels import passes

        n, loop = self.neurons[m], self.loop
        upper = loop.samples.upper[0] if loop.samples.upper.size == 1 else loop.samples.upper[m]
        samples, over, square, excess = passes.judge_row(
            z, loop.samples.target[m], loop.samples.mask[m], upper, self.level
        )
        z[n.samples] = n.eta
        watched = np.zeros(z.size, bool)
        watched[n.samples] = True
        new = ~watched[samples]
        samples, over = samples[new], over[new]
        return samples[_worst(over, max(LEAST, n.samples.size))], square, excess

    def _timed(self, phase: str, work: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        self.phases[phase] += time.perf_counter() - began
        return result


def _worst(excess: np.ndarray, most: int) -> np.ndarray:
    """Indices of the positive entries, the largest ones if there are too many."""
    index = np.flatnonzero(excess > 0)
    if index.size > most:
        index = index[np.argsort(-excess[index])[:most]]
    return index

"""What a solve returns, and the certificate: recomputed in float64 from the problem's data and the returned arrays.

Nothing here knows how W and the multipliers were found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from nettrim.arrays import to_host
from nettrim.chunked import Chunked
from nettrim.problem import Problem

__all__ = ["Certificate", "Solution", "Status", "certify", "verify_ray"]

#: float64 bytes of one chunk of samples
_CHUNK_BYTES = 12 << 20
#: rows of outputs that are judged at a time
_ROWS = 64
#: the ball's violation is relative to epsilon, but never to less than this fraction of ||Y_Omega||
_EPSILON_FLOOR = 1e-2


class Status(str, Enum):
    """Outcome of a solve. Only ``solved`` means that gap and violations are within the tolerances asked for.

    ``measured`` is that of methods without a dual bound: errors and violations are verified, no gap was sought.
    """

    SOLVED = "solved"
    SOLVED_INACCURATE = "solved_inaccurate"
    INFEASIBLE = "infeasible"
    MAX_ITERATIONS = "max_iterations"
    TIME_LIMIT = "time_limit"
    INTERRUPTED = "interrupted"
    MEASURED = "measured"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Certificate:
    """How good a set of weights provably is. All values are float64, from the problem's own data.

    Attributes
    ----------
    objective : float
        sum C |W|, or the problem's other penalty of W.
    dual_bound : float
        No feasible W has a smaller objective. ``-inf`` when no multipliers were given.
    gap : float
        (objective - dual_bound) / max(|objective|, |dual_bound|); negative if W violates a constraint and gains by it.
    ball_ratio : float
        || (W^T X - Y)_Omega ||_F / epsilon; with one ball per neuron the largest ratio. inf if epsilon = 0 is missed.
    ball_violation : float
        max(0, ||.||_F - epsilon) / max(epsilon, 0.01 ||Y_Omega||_F), the largest over the balls.
    inequality_violation : float
        || ((W^T X - V)_+)_notOmega ||_F relative to ||Y_Omega||_F (and the negative part of V).
    max_violation, rms_violation : float
        Largest and root-mean-square excess over V off Omega, in the units of Y.
    discrepancy : float
        || (W^T X - Y)_Omega ||_F / ||Y_Omega||_F.
    flips : int
        Omega entries with Y > 0 whose output became <= 0 (the ball does not forbid them).
    nnz : int
        Non-zero entries of W.
    density : float
        nnz / W.size.
    """

    objective: float
    dual_bound: float
    gap: float
    ball_ratio: float
    ball_violation: float
    inequality_violation: float
    max_violation: float
    rms_violation: float
    discrepancy: float
    flips: int
    nnz: int
    density: float

    @property
    def violation(self) -> float:
        """The larger of the two relative violations, the one compared with ``feas_tol``."""
        return max(self.ball_violation, self.inequality_violation)

    @property
    def error(self) -> float:
        """Distance on Omega and excess over V elsewhere in one, relative: ``hypot(discrepancy, inequality_violation)``.

        For V = 0 that is the error of the outputs after the ReLU, or a little more where an output flipped.
        """
        return float(np.hypot(self.discrepancy, self.inequality_violation))

    def holds(self, gap_tol: float, feas_tol: float) -> bool:
        """Whether the gap and the violations are within these tolerances."""
        return abs(self.gap) <= gap_tol and self.violation <= feas_tol

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Solution:
    """Result of a solve.

    Attributes
    ----------
    W : (N, M) array in the working dtype
        The weights, exactly zero where they are zero.
    status : Status
    certificate : Certificate
    dual : (M, P) array or None
        Multipliers behind the dual bound, as `certify` takes them: (N + 1, M) when `Problem.compact`. None when
        `Problem.on_disk`: they are as large as Y, and the bound has been computed from them.
    iterations : int
        Of ADMM, or rounds of working sets; `settings["method"]` says which.
    seconds : dict of str to float
        Wall-clock time by phase: setup (moments and factors, first sets), iterate, polish, certify, total.
    message : str
        What happened and, when not solved, what to change.
    smallest_epsilon : float or None
        For an infeasible problem the smallest radius that works, in the units of Y; None if none does.
    ray : (M, P) array or None
        For an infeasible problem, Lambda with X Lambda^T = 0, the right signs and a positive dual value.
    history : list of dict
        One row per check: method, iteration, objective, dual bound, gap, seconds. A row of working sets is a round and
        also has the violation, the inputs and the bounds in all sets, the kinks so far, and the ball's residual over
        its radius (the largest of them in neuron-wise mode). Rows of ADMM before those are its part of the start.
    settings : dict
        Settings of the solve, with the backend and dtype used.
    """

    W: np.ndarray
    status: Status
    certificate: Certificate
    dual: np.ndarray | None = None
    iterations: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    message: str = ""
    smallest_epsilon: float | None = None
    ray: np.ndarray | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return self.certificate.density

    @property
    def effort(self) -> str:
        """The iterations in words: rounds of working sets, or iterations of ADMM."""
        unit = "round" if self.settings.get("method") == "working_set" else "iteration"
        return f"{self.iterations} {unit}{'' if self.iterations == 1 else 's'}"

    def __repr__(self) -> str:
        c = self.certificate
        return (
            f"Solution({self.status}, kept {c.density:.2%}, gap {c.gap:.1e}, violation {c.violation:.1e}, "
            f"{self.effort}, {self.seconds.get('total', 0):.2f} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        return {
            "status": str(self.status),
            "certificate": self.certificate.to_dict(),
            "iterations": self.iterations,
            "seconds": self.seconds,
            "message": self.message,
            "smallest_epsilon": self.smallest_epsilon,
            "settings": self.settings,
        }


def certify(problem: Problem, W: np.ndarray, dual: np.ndarray | None = None) -> Certificate:
    """Certificate of weights W, with the lower bound that the multipliers `dual` prove.

    The bound is ``-<L_Omega, Y> - sum radius ||L_Omega|| - <L_notOmega, V>`` for any L with ``|X L^T| <= C`` and
    ``L_notOmega >= 0`` (weak duality). `dual` need not satisfy this: its sign is enforced, rows with unpenalised
    inputs are shifted on Omega until X L^T vanishes there, and each row is scaled until it is inside C. Of another
    penalty the dual norm takes the place of ``|X L^T| <= C``, or its conjugate is subtracted (`Penalty.bound`).

    Parameters
    ----------
    problem : Problem
    W : (N, M) array
    dual : (M, P) array or Chunked, optional
        For a `Problem.compact` one, the (N + 1, M) matrix [D; mu] of multipliers D^T X - diag(mu) Y.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError
        W is not of a floating dtype.
    ValueError
        W or `dual` has the wrong shape or is not finite.
    """
    W = to_host(W, "W")
    if W.shape != (problem.N, problem.M):
        raise ValueError(f"W must be {problem.N} x {problem.M}; got {W.shape}")
    if W.dtype.kind != "f":
        raise TypeError(f"W must be of a floating dtype; got {W.dtype}")
    if not np.isfinite(W).all():
        raise ValueError("W contains NaN or inf")
    W = W.astype(np.float64)
    view = _view(problem)
    objective = problem.penalty.value(W, problem.C)
    if dual is not None and not _in_parts(dual):
        dual = to_host(dual, "dual")
    bound = -np.inf if dual is None else _dual_bound(problem, dual)
    squares, excess, largest, flips = view.residuals(W)
    rows = np.sqrt(squares)
    norms = rows if problem.neuronwise else np.array([np.sqrt(squares.sum())])
    size = problem._row_norms if problem.neuronwise else np.array([problem.y_norm])
    inactive = problem.inactive
    nnz = int(np.count_nonzero(W))
    return Certificate(
        objective=objective,
        dual_bound=bound,
        gap=_relative(objective - bound, max(abs(objective), abs(bound))),
        ball_ratio=max(_relative(n, r) for n, r in zip(norms, problem.radii, strict=True)),
        ball_violation=max(
            _relative(max(n - r, 0.0), max(r, _EPSILON_FLOOR * s))
            for n, r, s in zip(norms, problem.radii, size, strict=True)
        ),
        inequality_violation=_relative(float(np.sqrt(excess)), problem.scale),
        max_violation=largest,
        rms_violation=float(np.sqrt(excess / inactive)) if inactive else 0.0,
        discrepancy=_relative(float(np.sqrt(squares.sum())), problem.y_norm),
        flips=flips,
        nnz=nnz,
        density=nnz / W.size,
    )


def verify_ray(problem: Problem, ray: np.ndarray) -> float:
    """How large an objective `ray` forces on any feasible W, relative to the scale of the weights; inf for a proof.

    A ray L with the right signs, a positive dual value d and X L^T = 0 proves that nothing is feasible. In floating
    point X L^T is only nearly zero; then every feasible W has an objective of at least d / max |X L^T / C|. The
    value returned is that bound over the objective of a dense W of typical size (outputs over inputs).

    Parameters
    ----------
    problem : Problem
    ray : (M, P) array
        As `dual` in `certify`: (N + 1, M) when `Problem.compact`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        `ray` has the wrong shape.
    """
    view = _view(problem)
    ray = to_host(ray, "ray").astype(np.float64, copy=False)
    if ray.shape != view.dual_shape:
        raise ValueError(f"ray must have the shape {view.dual_shape}; got {ray.shape}")
    linear, squares, H = view.multiplier(ray)
    value = -float(linear.sum()) - _ball_term(problem, np.sqrt(squares))
    if value <= 0:
        return 0.0
    C = problem.C.astype(np.float64)
    positive = C[C > 0]
    smallest = float(positive.min()) if positive.size else 1.0
    excess = float((np.abs(H) / np.maximum(C, smallest)).max())
    if excess == 0:
        return np.inf
    inputs = view.input_norm() / np.sqrt(problem.N)
    typical = smallest * problem.N * np.sqrt(problem.M) * problem.scale / inputs if inputs > 0 else 0.0
    return _relative(value / excess, typical)


def _ball_term(problem: Problem, norms: np.ndarray) -> float:
    """sum over the balls of radius times the multiplier's norm, from the norm of each row."""
    if problem.neuronwise:
        return float((problem.radii * norms).sum())
    return float(problem.radii[0] * np.sqrt((norms**2).sum()))


def _dual_bound(problem: Problem, dual: np.ndarray) -> float:
    view = _view(problem)
    if dual.shape != view.dual_shape:
        raise ValueError(f"dual must have the shape {view.dual_shape}; got {dual.shape}")
    if not _in_parts(dual) and not np.isfinite(dual).all():
        raise ValueError("dual contains NaN or inf")
    C = np.broadcast_to(problem.C.astype(np.float64), (problem.N, problem.M))
    linear, squares, H = view.multiplier(dual)
    free = np.flatnonzero((C == 0).any(1))
    if free.size:
        linear, squares, H = view.multiplier(dual, view.shift(H, C, free))
        # a row whose unpenalised inputs could not be balanced proves nothing: its multipliers are dropped
        noise = 1e-10 * np.sqrt(squares) * view.input_norm()
        usable = np.where(C == 0, np.abs(H), 0).max(0) <= noise
        linear, squares = linear * usable, squares * usable
        H = H * usable
    return problem.penalty.bound(-linear, np.sqrt(squares), H, problem.C, problem.radii)


def _in_parts(dual: Any) -> bool:
    """Whether multipliers are not in the memory of this process."""
    return isinstance(dual, Chunked) or getattr(dual, "elsewhere", False)


def _view(problem: Problem) -> Any:
    if problem.compact:
        return _Moments(problem)
    return _Samples(problem) if problem.shards is None else problem.shards.view(problem)


def samples_of(problem: Problem) -> _Samples:
    """What a certificate sums over the samples of a problem, for whoever has some of another's."""
    return _Samples(problem)


def balance(H: np.ndarray, C: np.ndarray, free: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """(N, M) coefficients D such that adding D^T X on Omega makes X L^T = H vanish at the entries with C = 0.

    `gram` is, for each neuron, X X^T over its Omega of the inputs `free`, those with such an entry.
    """
    shift = np.zeros_like(H)
    for m in range(H.shape[1]):
        zero = np.flatnonzero(C[free, m] == 0)
        if zero.size:
            rows = free[zero]
            shift[rows, m] = -np.linalg.lstsq(gram[m][np.ix_(zero, zero)], H[rows, m], rcond=1e-12)[0]
    return shift


class _Samples:
    """Multipliers L of M x P against the samples themselves, in float64, a chunk of samples at a time."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.dual_shape = (problem.M, problem.P)

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, slice]]:
        """(X, Y, mask, V, slice); mask and V are None for a linear layer."""
        p = self.problem
        step = max(1, _CHUNK_BYTES // (8 * (p.N + 4 * p.M)))
        for whole in p.parts(step):
            # what is on disk is read in larger parts than are converted
            read = p.part(whole) if p.chunked else None
            for start in range(whole.start, whole.stop, step):
                s = slice(start, min(start + step, whole.stop))
                here = slice(start - whole.start, s.stop - whole.start)
                X, Y, mask, V = p.part(s) if read is None else _columns(read, here)
                if p.linear:
                    mask = V = None
                else:
                    V = V.astype(np.float64)
                yield X.astype(np.float64), Y.astype(np.float64), mask, V, s

    def input_norm(self) -> float:
        return float(np.sqrt(sum(float((X**2).sum()) for X, *_ in self.chunks())))

    def residuals(self, W: np.ndarray) -> tuple[np.ndarray, float, float, int]:
        """Squared ball distance per row, squared excess over V, largest excess, flips."""
        squares, excess, largest, flips = np.zeros(self.problem.M), 0.0, 0.0, 0
        for X, Y, mask, V, _ in self.chunks():
            whole = W.T @ X
            # a few rows at a time, which the nearest caches hold from one operation to the next
            for m in range(0, len(whole), _ROWS):
                rows = slice(m, m + _ROWS)
                Z, y = whole[rows], Y[rows]
                if mask is not None:
                    inside = mask[rows]
                    flips += int(np.count_nonzero(inside & (y > 0) & (Z <= 0)))
                    over = Z - (V if V.size == 1 else V[rows])
                    np.maximum(over, 0, out=over)
                    # after the maximum, as V may be infinite
                    over *= ~inside
                    excess += float(np.vdot(over, over))
                    largest = max(largest, float(over.max()))
                Z -= y
                if mask is not None:
                    Z *= inside
                squares[rows] += np.einsum("mp,mp->m", Z, Z)
        return squares, excess, largest, flips

    def multiplier(
        self, dual: np.ndarray, shift: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row <L_Omega, Y> + <L_notOmega, V> and ||L_Omega||^2, and X L^T.

        L is `dual` with the signs it must have (>= 0 off Omega, 0 where V is infinite), plus shift^T X on Omega.
        """
        p = self.problem
        linear, squares, H = np.zeros(p.M), np.zeros(p.M), np.zeros((p.N, p.M))
        for X, Y, mask, V, s in self.chunks():
            # all of it at once would be two more arrays of the size of Y in float32
            part = dual[:, s].astype(np.float64)
            if isinstance(dual, Chunked) and not np.isfinite(part).all():
                raise ValueError("dual contains NaN or inf")
            inside = part if shift is None else part + shift.T @ X
            if mask is not None:
                outside = np.where(mask | np.isinf(V), 0, np.maximum(part, 0))
                linear += (outside * np.where(np.isinf(V), 0, V)).sum(1)
                inside = np.where(mask, inside, 0)
                H += X @ outside.T
            linear += np.einsum("mp,mp->m", inside, Y)
            squares += np.einsum("mp,mp->m", inside, inside)
            H += X @ inside.T
        return linear, squares, H

    def shift(self, H: np.ndarray, C: np.ndarray, free: np.ndarray) -> np.ndarray:
        """See `balance`."""
        return balance(H, C, free, self.grams(free))

    def grams(self, free: np.ndarray) -> np.ndarray:
        """For each neuron X X^T over its Omega, of the inputs `free`."""
        gram = np.zeros((self.problem.M, free.size, free.size))
        for X, _, mask, _, _ in self.chunks():
            x = X[free]
            gram += x @ x.T if mask is None else np.einsum("ip,mp,jp->mij", x, mask, x, optimize=True)
        return gram


def _columns(arrays: tuple[Any, ...], samples: slice) -> tuple[Any, ...]:
    """Some columns of (X, Y, mask, V)."""
    X, Y, mask, V = arrays
    return X[:, samples], Y[:, samples], None if mask is None else mask[:, samples], V if V.size == 1 else V[:, samples]


class _Moments:
    """Multipliers of a linear layer in the span of the data, L = D^T X - diag(mu) Y, given as [D; mu], (N + 1) x M.

    Everything that is needed of L follows from X X^T, X Y^T and the row norms of Y.
    """

    def __init__(self, problem: Problem):
        self.gram = problem.moments()
        self.dual_shape = (problem.N + 1, problem.M)

    def input_norm(self) -> float:
        return float(np.sqrt(np.trace(self.gram.XX)))

    def residuals(self, W: np.ndarray) -> tuple[np.ndarray, float, float, int]:
        return self.gram.squared_errors(W), 0.0, 0.0, 0

    def multiplier(
        self, dual: np.ndarray, shift: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row <L, Y> and ||L||^2, and X L^T."""
        dual = dual.astype(np.float64)
        D, mu = (dual[:-1] if shift is None else dual[:-1] + shift), dual[-1]
        XX, XY, YY = self.gram.XX, self.gram.XY, self.gram.YY
        XD = XX @ D
        cross = (D * XY).sum(0)
        squares = (D * XD).sum(0) - 2 * mu * cross + mu**2 * YY
        return cross - mu * YY, np.maximum(squares, 0), XD - mu * XY

    def shift(self, H: np.ndarray, C: np.ndarray, free: np.ndarray) -> np.ndarray:
        """As for the samples: D + shift makes X L^T vanish at the entries with C = 0."""
        shift = np.zeros_like(H)
        for m in range(H.shape[1]):
            zero = np.flatnonzero(C[:, m] == 0)
            if zero.size:
                gram = self.gram.XX[np.ix_(zero, zero)]
                shift[zero, m] = -np.linalg.lstsq(gram, H[zero, m], rcond=1e-12)[0]
        return shift


def _relative(value: float, scale: float) -> float:
    """value / scale, with 0 / 0 = 0 and value / 0 = inf."""
    if value == 0:
        return 0.0
    if not np.isfinite(value):
        return float(np.inf)
    return float(value / scale) if scale > 0 else float(np.inf)

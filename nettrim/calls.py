"""One layer in one call: arrays in, a certified solution out."""

from __future__ import annotations

from typing import Any

from nettrim.path import FIRST, count_of, to_count
from nettrim.reweight import Reweighted, check_rounds, reweight
from nettrim.solution import Solution
from nettrim.solver import Solver, prepared

__all__ = ["solve", "sparsest"]


def solve(X: Any, Y: Any = None, epsilon: float | None = None, **options: Any) -> Solution:
    """Sparsest (l1) weights that reproduce a layer's outputs within a stated error, with a certificate.

    Parameters
    ----------
    X : (N, P) array or Gram
        Layer inputs, a column a sample (a row of ones for the bias), or the second moments of a linear layer.
    Y : (M, P) array
        Layer outputs; left out when X is a Gram.
    epsilon : float
        Error relative to ``||Y_Omega||_F``; `epsilon_abs` is the same in the units of Y.
    **options
        In place of an error, `density` or `nnz`: the fraction or the number of weights to keep at most, and epsilon is
        searched for. Parameters of `Problem` (omega, V, C, penalty, neuronwise, dtype, epsilon_abs) and of `Settings`
        (gap_tol, ...).

    Returns
    -------
    Solution

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.

    Examples
    --------
    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((50, 400))
    >>> Y = np.maximum((rng.standard_normal((50, 8)) ** 3).T @ X, 0)
    >>> sol = nt.solve(X, Y, epsilon=0.1)
    >>> sol.status
    <Status.SOLVED: 'solved'>
    >>> sol.certificate.gap <= 1e-3 and sol.certificate.violation <= 1e-4
    True
    >>> nt.solve(X, Y, density=0.3).certificate.nnz <= 0.3 * 50 * 8
    True
    """
    solver, nnz = _prepared(X, Y, epsilon, options)
    return solver.solve() if nnz is None else to_count(solver, nnz)


def sparsest(X: Any, Y: Any = None, epsilon: float | None = None, *, rounds: int = 4, **options: Any) -> Reweighted:
    """Sparser weights within a stated error than `solve` finds, by iteratively reweighted l1.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 600))
    >>> Y = np.maximum((rng.standard_normal((60, 8)) ** 3).T @ X, 0)
    >>> plain, sol = nt.solve(X, Y, epsilon=0.1), nt.sparsest(X, Y, epsilon=0.1)
    >>> sol.status, sol.density < 0.8 * plain.density, sol.certificate.discrepancy < 0.1001
    (<Status.SOLVED: 'solved'>, True, True)

    Parameters
    ----------
    X, Y, epsilon
        As for `solve`.
    rounds : int
        At most; each is another convex program with the same constraints, warm from the one before.
    **options
        As for `solve`. `time_limit` is for all rounds.

    Returns
    -------
    Reweighted
        A `Solution`, whose gap is that of its round's weighted norm. No round proves that no sparser weights exist.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    check_rounds(rounds)
    solver, nnz = _prepared(X, Y, epsilon, options)
    return reweight(solver, rounds) if nnz is None else to_count(solver, nnz, rounds)


def _prepared(X: Any, Y: Any, epsilon: float | None, options: dict[str, Any]) -> tuple[Solver, int | None]:
    """A solver, and the count that is asked for in place of an error."""
    density, nnz = (options.pop(name, None) for name in ("density", "nnz"))
    if density is None and nnz is None:
        return Solver(*prepared(X, Y, epsilon, options)), None
    if epsilon is not None or "epsilon_abs" in options:
        raise TypeError("give an error (epsilon, epsilon_abs) or a target (density, nnz), not both")
    solver = Solver(*prepared(X, Y, FIRST, options))
    return solver, count_of(solver.problem, density, nnz)

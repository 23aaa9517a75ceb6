"""Refit: the weights on a given support that reproduce a layer's outputs best, its ReLU taken into account.

The method is that of relu_newton.py; a linear layer is one least-squares problem a neuron, from its second moments.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from nettrim.arrays import to_host
from nettrim.measured import Measured, measured
from nettrim.problem import Problem
from nettrim.pruners.least_squares import least_squares
from nettrim.relu_loss import ReluLoss
from nettrim.relu_newton import Neurons, blocks
from nettrim.solution import certify

__all__ = ["refit", "refit_weights"]


def refit(problem: Problem, W: Any, *, within: bool = False, heldout: Problem | None = None) -> Measured:
    """Best weights on the support of W, the ReLU taken into account.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 600))
    >>> Y = np.maximum((rng.standard_normal((60, 8)) ** 3).T @ X, 0)
    >>> problem = nt.Problem(X, Y, epsilon=0.2)
    >>> sol = nt.Solver(problem).solve()
    >>> better = nt.refit(problem, sol.W)
    >>> better.certificate.nnz <= sol.certificate.nnz, better.certificate.error < 0.9 * sol.certificate.error
    (True, True)

    Parameters
    ----------
    problem : Problem
        Its samples, Omega and V; its radius and C play no part.
    W : (N, M) array
        Weights whose support is kept. They are where the search starts.
    within : bool
        Whether the bounds ``(W^T X)_notOmega <= V`` are kept to, as well as W does and to rounding, rather than traded
        for a smaller error. A W inside the ball then stays inside: the certificate's violations show it.
    heldout : Problem, optional
        Other samples of the same layer: weights that are worse there than W are not returned.

    Returns
    -------
    Measured
        Status ``measured``; settings["method"] is "refit", settings["refit"] whether new weights are returned.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    began = time.perf_counter()
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a nettrim.Problem; got {type(problem).__name__}")
    if heldout is not None and not isinstance(heldout, Problem):
        raise TypeError(f"heldout must be a nettrim.Problem; got {type(heldout).__name__}")
    W = to_host(W, "W")
    # whatever shows how good the refit is: samples it has not seen, if there are any
    judge = heldout or problem
    before = certify(judge, W).error
    W = W.astype(problem.dtype, copy=False)
    new, message = refit_weights(problem, W, within=within), ""
    after = certify(judge, new).error
    if after > before:
        where = "samples held out" if heldout is not None else "the samples"
        message = f"no refit: on {where} the error would be {after:.4g} in place of {before:.4g}"
        new = W
    seconds = time.perf_counter() - began
    return measured(
        problem, new, heldout, "refit", seconds, message, own_radius=False, refit=not message, within=within
    )


def refit_weights(problem: Problem, W: np.ndarray, within: bool = False) -> np.ndarray:
    """As `refit`, the bare weights."""
    if problem.linear:
        # every neuron has the same moments
        moments = problem.moments()
        return least_squares(W, moments.XX, W != 0, moments.XY)
    loss, new = ReluLoss(problem), W.copy()
    with loss.workers() as pool:
        for neurons in blocks(loss, np.count_nonzero(W, axis=0), 3 + within):
            part = Neurons(loss, pool, neurons, new)
            if within:
                part.minimise_within()
            else:
                part.minimise(part.everyone())
    return new

"""How a layer's weights are found: by l1 within an error; by l1, a search or a compared pruner for a count."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim import pruners
from nettrim.l0 import EFFORTS, search
from nettrim.measured import measured
from nettrim.operators import mirror, moments
from nettrim.path import FIRST, to_count
from nettrim.problem import Problem
from nettrim.refit import refit
from nettrim.reweight import check_rounds, reweight
from nettrim.samples import operator_of
from nettrim.solution import Solution, Status
from nettrim.solver import Solver
from nettrim.sparsity import make, of_pattern

__all__ = ["METHODS", "PENALTIES", "REFITS", "How"]

#: by l1, and the solver that does it, see `Settings`; and those without a dual bound
SOLVERS = ("auto", "admm", "working_set")
METHODS = (*SOLVERS, "l0", *pruners.METHODS)
REFITS = (None, "free", "within")
#: of single weights, or of all that read an input (channel), or belong to an output (channel)
PENALTIES = (None, "inputs", "outputs")


@dataclass(frozen=True)
class How:
    """The choices that are the same for all layers.

    Parameters
    ----------
    method : {"auto", "admm", "working_set", "l0", "magnitude", "random", "wanda", "sparsegpt", "alps"}
        The first three are l1 by one of its solvers.
    rounds : int
        Of reweighted l1, at most.
    refit : {None, "free", "within"}
        Of what l1 has found, or (free) least squares after a compared pruner; the search ends with one of itself.
    effort : {"fast", "default", "thorough"}
        Of the search.
    penalty : {None, "inputs", "outputs"}
        A group norm in the place of l1: inputs or outputs of a layer, channels of a convolution, leave as a whole.
    pattern : str, optional
        "n:m", such as "2:4": at most n of m consecutive inputs of a neuron, in the place of a count; not by l1.

    Raises
    ------
    TypeError, ValueError
        A wrong choice; the message names it.
    """

    method: str = "auto"
    rounds: int = 1
    refit: str | None = None
    effort: str = "default"
    penalty: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.refit not in REFITS:
            raise ValueError(f"refit must be None, 'free' or 'within'; got {self.refit!r}")
        if self.effort not in EFFORTS:
            raise ValueError(f"effort must be one of {', '.join(EFFORTS)}; got {self.effort!r}")
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty must be None, 'inputs' or 'outputs'; got {self.penalty!r}")
        if self.penalty and self.method not in ("auto", "admm"):
            raise ValueError(f"penalty={self.penalty!r} needs method='auto' or 'admm'; got {self.method!r}")
        if self.pattern is not None:
            of_pattern(self.pattern)
            if self.l1:
                hint = "'l0' or one of the compared pruners"
                raise ValueError(f"pattern={self.pattern!r} needs method={hint}; got {self.method!r}")
        check_rounds(self.rounds)
        if self.rounds > 1 and not self.l1:
            raise ValueError(f"rounds are those of reweighted l1; got rounds={self.rounds} with method={self.method!r}")
        if self.refit == "within" and not self.l1:
            raise ValueError(f"refit='within' keeps to the constraints of l1; got method={self.method!r}")

    @property
    def l1(self) -> bool:
        """Whether l1 decides, within a ball, rather than a method that needs a count."""
        return self.method in SOLVERS

    def density(self, epsilon: Any, density: Any) -> Any:
        """The density that is asked for, or that the pattern has; None if an error is.

        Raises
        ------
        TypeError, ValueError
            There is not one of an error, a density and a pattern, or the method cannot do it.
        """
        if self.pattern is not None:
            if epsilon is not None or density is not None:
                raise TypeError("give one of an error (epsilon), a target (density) and a pattern")
            pattern = of_pattern(self.pattern)
            return pattern.n / pattern.m
        if density is not None and epsilon is not None:
            raise TypeError("give an error (epsilon) or a target (density), not both")
        if density is None and not self.l1:
            raise ValueError(f"method={self.method!r} needs a density or a pattern: it has no error to keep to")
        return density

    def check_inputs(self, layers: Iterable[tuple[str, int]]) -> None:
        """That a pattern fits the (name, inputs of a neuron) of each layer.

        Raises
        ------
        ValueError
            It does not.
        """
        for name, inputs in layers if self.pattern is not None else ():
            try:
                of_pattern(self.pattern).count((inputs, 1))
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}. Add it to `ignore`") from None

    def solve(
        self,
        problem: Problem,
        own: np.ndarray,
        bias: bool,
        density: float | None = None,
        heldout: Problem | None = None,
        **settings: Any,
    ) -> tuple[Problem, Solution]:
        """Weights for a problem, and the problem with the radius that they are for.

        Parameters
        ----------
        problem : Problem
        own : (N, M) array
            The layer's dense weights.
        bias : bool
            Whether the last row is a bias, which a count allows on top.
        density : float, optional
            Fraction of the other weights to keep; without it the problem's own radius holds, for l1 only.
        heldout : Problem, optional
            Other samples, for a refit to be judged on.
        **settings
            Those of `Settings`.
        """
        if self.l1:
            return self._l1(problem, bias, density, heldout, settings | {"method": self.method})
        shape = problem.N - bias, problem.M
        pattern = make(shape, density) if self.pattern is None else make(shape, pattern=self.pattern)
        if self.method == "l0":
            limit = settings.get("time_limit", np.inf)
            found: Solution = search(problem, own, pattern, bias=bias, effort=self.effort, time_limit=limit)
        else:
            began = time.perf_counter()
            H = problem.moments().XX if problem.linear else _moments(problem)
            W = own.astype(np.float64)
            W[: shape[0]] = pruners.METHODS[self.method](W[: shape[0]], H[: shape[0], : shape[0]], pattern)
            if self.refit:
                support = W != 0
                support[shape[0] :] = True
                W = pruners.least_squares(own.astype(np.float64), H, support)
            found = measured(problem, W.astype(problem.dtype), None, self.method, time.perf_counter() - began)
        return _met(problem, found), found

    def _l1(
        self, problem: Problem, bias: bool, density: float | None, heldout: Problem | None, settings: dict[str, Any]
    ) -> tuple[Problem, Solution]:
        found: Solution
        if density is None:
            found = reweight(Solver(problem, **settings), self.rounds)
        else:
            nnz = make((problem.N - bias, problem.M), density).nnz + bias * problem.M  # type: ignore[union-attr]
            # with bounds of its own, the problem is that of a cascade, and its radius one that is surely within reach
            bounded = problem.V.size > 1
            least = problem.epsilon / problem.y_norm if bounded and problem.y_norm > 0 else 0.0
            first = problem.replace(epsilon=max(FIRST, least))
            found = to_count(Solver(first, **settings), nnz, self.rounds, least)
            problem = problem.replace(epsilon=found.settings["epsilon"])
        if self.refit is None or found.status not in (Status.SOLVED, Status.SOLVED_INACCURATE):
            return problem, found
        better = refit(problem, found.W, within=self.refit == "within", heldout=heldout)
        return problem, better if better.settings["refit"] else found


def _moments(problem: Problem) -> np.ndarray:
    """X X^T, (N, N) float64; kept, since one problem may be pruned at several densities."""
    if problem.products is None:
        if isinstance(problem.X, np.ndarray):
            problem.products = mirror(moments(problem.X))
        else:
            from nettrim.backends import get

            problem.products = operator_of(problem.X, get("numba", None), problem.dtype).gram()
    return problem.products


def _met(problem: Problem, found: Solution) -> Problem:
    """The problem with the smallest radius that the weights keep to, so far as it can be that small."""
    least = 2e-5 * problem.y_norm if problem.gram is not None else 0.0
    return problem.replace(epsilon_abs=max(found.certificate.discrepancy * problem.y_norm, least))

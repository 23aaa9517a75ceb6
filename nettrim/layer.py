"""One layer of a network as arrays: its weights, what it computes, and its pruning as a problem for each group.

Batches come first, as frameworks have them: inputs are (B, ..., N) for a dense layer, (B, C, H, W) or (B, C, L) for a
convolution, and outputs have the form that the layer gives them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from nettrim.backends import get
from nettrim.convolution import Convolution
from nettrim.geometry import Geometry, channel_groups
from nettrim.how import How
from nettrim.path import FIRST
from nettrim.penalties import Columns, Groups, Penalty, Rows
from nettrim.problem import Problem, warn
from nettrim.solution import Certificate, Solution, Status, certify
from nettrim.unfolding import Unfolding

__all__ = [
    "USABLE",
    "Layer",
    "PrunedLayer",
    "bias_weights",
    "group_problems",
    "kind_of",
    "prune_layer",
    "solve_groups",
    "structured",
]

#: statuses with which new weights take the place of a layer's own
USABLE = (Status.SOLVED, Status.SOLVED_INACCURATE, Status.MEASURED)
_ORDER = (Status.SOLVED, Status.MEASURED, Status.SOLVED_INACCURATE, Status.MAX_ITERATIONS, Status.TIME_LIMIT)


@dataclass(frozen=True)
class Layer:
    """A dense layer or a convolution, with or without a ReLU after it.

    Parameters
    ----------
    weight : (M, N), (M, C, kh, kw) or (M, C, k) array
        As torch has it: outputs first.
    bias : (M,) array, optional
    relu : bool
        Whether a ReLU follows.
    geometry : Geometry, optional
        Of a convolution; its `bias` is that of the layer.
    groups : int
        Of a convolution.
    name : str

    Raises
    ------
    TypeError
        `weight` or `bias` is not of a floating dtype.
    ValueError
        Shapes that do not fit each other.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None
    relu: bool = True
    geometry: Geometry | None = None
    groups: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        for what, a in (("weight", self.weight), ("bias", self.bias)):
            if a is not None and (not isinstance(a, np.ndarray) or a.dtype.kind != "f"):
                raise TypeError(f"{what} of layer {self.name!r} must be an array of a floating dtype")
        expected = 2 if self.geometry is None else 2 + self.geometry.ndim
        if self.weight.ndim != expected:
            raise ValueError(f"weight of layer {self.name!r} must have {expected} dimensions; got {self.weight.shape}")
        if self.geometry is not None:
            if self.weight.shape[2:] != self.geometry.kernel:
                raise ValueError(
                    f"weight of layer {self.name!r} is {self.weight.shape}, its kernel {self.geometry.kernel}"
                )
            object.__setattr__(self, "geometry", replace(self.geometry, bias=self.bias is not None))
            channel_groups(self.inputs, self.outputs, self.groups)
        elif self.groups != 1:
            raise ValueError(f"groups of layer {self.name!r} are for convolutions")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias of layer {self.name!r} must be {self.weight.shape[:1]}; got {self.bias.shape}")

    def __repr__(self) -> str:
        kind = "dense" if self.geometry is None else "convolution"
        shape = " x ".join(map(str, self.weight.shape))
        follows = "ReLU" if self.relu else "linear"
        return f"Layer({self.name!r}, {kind}, {shape}, {follows}, {self.nnz} of {self.size} kept)"

    @property
    def outputs(self) -> int:
        """Neurons, or output channels."""
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """Inputs, or input channels."""
        return self.weight.shape[1] * self.groups

    @property
    def size(self) -> int:
        """Weights and biases."""
        return self.weight.size + (0 if self.bias is None else self.bias.size)

    @property
    def nnz(self) -> int:
        """Weights and biases that are not zero."""
        return int(np.count_nonzero(self.weight)) + (0 if self.bias is None else int(np.count_nonzero(self.bias)))

    def parts(self) -> list[tuple[slice, slice]]:
        """(input channels, outputs) of each group."""
        if self.groups == 1:
            return [(slice(0, self.inputs), slice(0, self.outputs))]
        return channel_groups(self.inputs, self.outputs, self.groups)

    def augmented(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs of a dense layer as (P, N) with a column of ones for a bias; of a convolution as they are."""
        if self.geometry is not None:
            return inputs
        rows = inputs.reshape(-1, inputs.shape[-1])
        if self.bias is None:
            return rows
        made = np.empty((rows.shape[0], rows.shape[1] + 1), np.result_type(rows.dtype, np.float32))
        made[:, :-1] = rows
        made[:, -1] = 1
        return made

    def matrix(self, inputs: np.ndarray, dtype: Any = None) -> Any:
        """X of one group's `inputs`, in `dtype`: N x P with a row of ones if there is a bias, or a `Convolution`.

        Inputs that are `augmented` already are not copied, if their dtype fits.
        """
        if self.geometry is not None:
            return Convolution(inputs, self.geometry, dtype=dtype)
        if inputs.shape[-1] == self.weight.shape[1]:
            inputs = self.augmented(inputs)
        return inputs.T if dtype is None else inputs.T.astype(dtype, copy=False)

    def flatten(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs as an M x P matrix."""
        if self.geometry is None:
            return outputs.reshape(-1, outputs.shape[-1]).T
        return np.moveaxis(outputs, 1, 0).reshape(outputs.shape[1], -1)

    def weights(self, m: slice) -> np.ndarray:
        """W of a group, N x M: the bias is its last row."""
        rows = [self.weight[m].reshape(m.stop - m.start, -1).T]
        if self.bias is not None:
            rows.append(self.bias[None, m])
        return np.vstack(rows)

    def linear(self, inputs: np.ndarray) -> np.ndarray:
        """What goes into the ReLU; `inputs` may be `augmented`.

        Raises
        ------
        ValueError
            Inputs of another size.
        """
        if self.geometry is None and self.bias is not None and inputs.shape[-1] > self.weight.shape[1]:
            return inputs @ self.weights(slice(0, self.outputs))
        if self.geometry is None:
            if inputs.shape[-1] != self.weight.shape[1]:
                raise ValueError(
                    f"inputs of layer {self.name!r} must have {self.weight.shape[1]} entries; got {inputs.shape}"
                )
            outputs = inputs @ self.weight.T
            return outputs if self.bias is None else outputs + self.bias
        parts = []
        for c, m in self.parts():
            X = Convolution(inputs[:, c], self.geometry)
            W = self.weights(m).astype(X.dtype, copy=False)
            Z = np.empty((W.shape[1], X.shape[1]), X.dtype)
            Unfolding(X, get("numba"), X.dtype).forward(W, Z)
            parts.append(Z.reshape(W.shape[1], inputs.shape[0], *X.output_shape))
        return np.moveaxis(np.concatenate(parts), 1, 0)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs of the layer."""
        outputs = self.linear(inputs)
        return np.maximum(outputs, 0, out=outputs) if self.relu else outputs

    def amplification(self, with_bias: bool = False) -> float:
        """Sum of the absolute weights, ||W||_1: by how much a difference of inputs grows at most.

        Of a convolution too, by Young's inequality.
        """
        total = float(np.abs(self.weight).sum(dtype=np.float64))
        return total + (float(np.abs(self.bias).sum(dtype=np.float64)) if with_bias and self.bias is not None else 0.0)


@dataclass(frozen=True)
class PrunedLayer:
    """A layer after its pruning, one problem a group.

    Parameters
    ----------
    layer : Layer
        With the new weights.
    solutions : list of Solution
    certificates : list of Certificate
        Of the weights as the layer holds them, which may be rounded.
    radii, sizes : tuple of float
        epsilon and ||Y_Omega||_F of each, in the units of the outputs.
    samples : int
        P.
    """

    layer: Layer
    solutions: list[Solution]
    certificates: list[Certificate]
    radii: tuple[float, ...]
    sizes: tuple[float, ...]
    samples: int

    @classmethod
    def of(cls, layer: Layer, solved: list[tuple[Problem, Solution, Certificate]]) -> PrunedLayer:
        """From each group's problem, its solution, and the certificate of the weights that the layer holds."""
        problems, solutions, certificates = (list(column) for column in zip(*solved, strict=True))
        radii, sizes = tuple(p.epsilon for p in problems), tuple(p.y_norm for p in problems)
        return cls(layer, solutions, certificates, radii, sizes, problems[0].P)

    @property
    def status(self) -> Status:
        """The worst of the groups'."""
        return max((s.status for s in self.solutions), key=lambda s: _ORDER.index(s) if s in _ORDER else len(_ORDER))

    @property
    def gap(self) -> float | None:
        """The largest of the groups'; None where a method without a dual bound found the weights."""
        if any(s.status is Status.MEASURED for s in self.solutions):
            return None
        return max((c.gap for c in self.certificates), key=abs)

    @property
    def violation(self) -> float:
        """The largest of the groups'."""
        return max(c.violation for c in self.certificates)

    @property
    def round(self) -> int:
        """The latest of the groups' rounds of reweighting."""
        return max(getattr(s, "round", 1) for s in self.solutions)

    @property
    def flips(self) -> int:
        """Outputs that were positive and no longer are."""
        return sum(c.flips for c in self.certificates)

    @property
    def seconds(self) -> float:
        """Of all groups."""
        return sum(s.seconds["total"] for s in self.solutions)

    @property
    def epsilon(self) -> float:
        """Radius of the ball over all groups."""
        return math.sqrt(sum(r**2 for r in self.radii))

    @property
    def distance(self) -> float:
        """How far its outputs may be from those asked for: the radius, or what was measured where none was kept to."""
        if not any(s.status is Status.MEASURED for s in self.solutions):
            return self.epsilon
        return math.hypot(*(c.error * size for c, size in zip(self.certificates, self.sizes, strict=True)))

    @property
    def size(self) -> float:
        """||Y_Omega||_F over all groups."""
        return math.sqrt(sum(size**2 for size in self.sizes))

    @property
    def discrepancy(self) -> float:
        """Relative error of the outputs on Omega, on the inputs that the layer was pruned with."""
        errors = (c.discrepancy * size for c, size in zip(self.certificates, self.sizes, strict=True))
        return math.sqrt(sum(e**2 for e in errors)) / (self.size or 1.0)


def kind_of(layer: Layer) -> str:
    """Dense or convolution, with what follows it."""
    return f"{'dense' if layer.geometry is None else 'convolution'}, {'ReLU' if layer.relu else 'linear'}"


def _usable(name: str, solution: Solution) -> bool:
    """Whether a solution's weights may take the place of a layer's own; if not, there is a warning that says why.

    Raises
    ------
    KeyboardInterrupt
        The solve was interrupted by Ctrl-C.
    """
    if solution.status == Status.INTERRUPTED:
        raise KeyboardInterrupt(f"while layer {name!r} was solved")
    if solution.status in USABLE:
        return True
    warn(f"layer {name!r} keeps its own weights: {solution.status}. {solution.message}")
    return False


def prune_layer(
    layer: Layer,
    inputs: np.ndarray,
    outputs: np.ndarray,
    epsilon: float | None = None,
    *,
    slack: tuple[float, np.ndarray] | None = None,
    density: float | None = None,
    how: How = How(),  # noqa: B008  frozen
    heldout: tuple[np.ndarray, np.ndarray] | None = None,
    penalise_bias: bool = True,
    dtype: Any = None,
    **settings: Any,
) -> PrunedLayer:
    """Sparsest weights of a layer on these inputs.

    Parameters
    ----------
    layer : Layer
    inputs : array
        What goes into it, in the cascade scheme from pruned layers.
    outputs : array
        What it shall put out: those of the unpruned network.
    epsilon : float, optional
        Radius relative to ||Y_Omega||_F, of each group.
    slack : (float, array), optional
        In place of `epsilon`: gamma, and what the layer's own weights make of `inputs` before the ReLU. The radius is
        then gamma times its distance to `outputs` on Omega, and it is the upper bound off Omega (program (3.10) of
        Aghasi et al. 2020), so that the layer's own weights are feasible.
    density : float, optional
        In place of a radius: the fraction of weights to keep; the bias stays and does not count. With `slack` the
        bounds off Omega are those of (3.10) all the same.
    how : How
        The method and its choices.
    heldout : (inputs, outputs), optional
        Other samples, for a refit to be judged on.
    penalise_bias : bool
        Whether the bias counts in the l1 norm.
    dtype : {None, numpy.float32, numpy.float64}
    **settings
        Those of `Settings`.

    Returns
    -------
    PrunedLayer

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    if epsilon is not None and (slack is not None or density is not None):
        raise ValueError("give epsilon, or slack, or density, or the last two")
    if epsilon is None and slack is None and density is None:
        raise ValueError("give one of epsilon, slack and density")
    number, own = slack if slack is not None else (FIRST if epsilon is None else epsilon, None)
    others = None if heldout is None else group_problems(layer, *heldout, FIRST, dtype=dtype)
    problems = group_problems(layer, inputs, outputs, number, own, penalise_bias, dtype)
    return solve_groups(layer, problems, how=how, density=density, heldout=others, **settings)


def group_problems(
    layer: Layer,
    inputs: np.ndarray,
    outputs: np.ndarray,
    number: float,
    own: np.ndarray | None = None,
    penalise_bias: bool = True,
    dtype: Any = None,
) -> Iterator[tuple[slice, Problem]]:
    """(outputs, problem) of each group; `number` is epsilon, or gamma if `own` is what its weights make of `inputs`.

    Raises
    ------
    ValueError
        gamma is below 1, or the arrays do not fit.
    """
    if own is not None and number < 1:
        raise ValueError(f"gamma must be at least 1, or the layer's own weights are not feasible; got {number}")
    for c, m in layer.parts():
        X = layer.matrix(inputs[:, c] if layer.groups > 1 else inputs, dtype)
        Y = layer.flatten(outputs)[m]
        options: dict[str, Any] = {"omega": "active" if layer.relu else "linear", "dtype": dtype, "epsilon": number}
        if own is not None:
            Z = layer.flatten(own)[m]
            D = np.where(Y > 0, Z - Y, 0) if layer.relu else Z - Y
            options |= {"epsilon": None, "epsilon_abs": number * float(np.linalg.norm(D.astype(np.float64)))}
            if layer.relu:
                # a bound above zero is none for the outputs: the ReLU of the layer's own weights allows it
                options["V"] = Z
        yield m, Problem(X, Y, **options, **bias_weights(layer, X.shape[0], penalise_bias))


def bias_weights(layer: Layer, rows: int, penalise_bias: bool) -> dict[str, Any]:
    """C as an option of a problem with so many inputs: nothing for an unpenalised bias."""
    if penalise_bias or layer.bias is None:
        return {}
    C = np.ones((rows, 1))
    C[-1] = 0
    return {"C": C}


def structured(layer: Layer, penalty: str) -> Penalty:
    """The group norm that "inputs" or "outputs" stands for: of channels, where the layer is a convolution."""
    if penalty == "outputs":
        return Columns()
    if layer.geometry is None:
        return Rows()
    channels = layer.weight.shape[1]
    labels = np.arange(channels).repeat(math.prod(layer.weight.shape[2:]))
    return Groups(labels if layer.bias is None else np.append(labels, channels))


def solve_groups(
    layer: Layer,
    problems: Iterable[tuple[slice, Problem]],
    hold: Callable[[np.ndarray, str], np.ndarray] = lambda a, what: a,
    how: How = How(),  # noqa: B008  frozen
    density: float | None = None,
    heldout: Iterable[tuple[slice, Problem]] | None = None,
    **settings: Any,
) -> PrunedLayer:
    """Solve the groups' problems; the layer holds what `hold` makes of "weight" and "bias", and that is certified.

    `heldout` has the problems of other samples, in the same order.
    """
    if settings.get("checkpoint") is not None:
        raise ValueError(
            f"checkpoint is for a single solve, not for layers of a network; got {settings['checkpoint']!r}"
        )
    solved = []
    weight, bias = layer.weight.copy(), None if layer.bias is None else layer.bias.copy()
    limit, began = settings.pop("time_limit", math.inf), time.perf_counter()
    others = repeat(None) if heldout is None else (other for _, other in heldout)
    for (m, problem), other in zip(problems, others, strict=False):
        # of what is left for the layer, but enough to return something
        left = max(limit - (time.perf_counter() - began), 1e-9)
        own = layer.weights(m).astype(problem.dtype)
        if how.penalty is not None:
            problem = problem.replace(penalty=structured(layer, how.penalty))
        problem, solution = how.solve(problem, own, bias is not None, density, other, time_limit=left, **settings)
        if not _usable(layer.name, solution):
            solved.append((problem, solution, certify(problem, own, None)))
            continue
        W = np.asarray(solution.W)
        entries = W.shape[0] - (bias is not None)
        weight[m] = hold(W[:entries].T.reshape(weight[m].shape), "weight")
        if bias is not None:
            bias[m] = hold(W[entries], "bias")
        held = replace(layer, weight=weight, bias=bias).weights(m).astype(problem.dtype)
        certificate = solution.certificate
        if not np.array_equal(held, W):
            C = getattr(solution, "C", None)
            certificate = certify(problem if C is None else problem.replace(C=C), held, solution.dual)
            solution = _rounded(solution, certificate)
        solved.append((problem, solution, certificate))
    return PrunedLayer.of(replace(layer, weight=weight, bias=bias), solved)


def _rounded(solution: Solution, certificate: Certificate) -> Solution:
    """The solution as what its rounded weights are: they may miss the tolerances that it met."""
    if solution.status is Status.MEASURED:
        return solution
    gap_tol, feas_tol = solution.settings["gap_tol"], solution.settings["feas_tol"]
    if solution.status is not Status.SOLVED or certificate.holds(gap_tol, feas_tol):
        return solution
    message = f"rounding costs the tolerances: gap {certificate.gap:.1e}, violation {certificate.violation:.1e}"
    return replace(solution, status=Status.SOLVED_INACCURATE, message=message)

"""Pruning a network of plain layers: parallel and cascade schemes, and how far the errors can add up.

Both schemes are those of Aghasi, Abdi, Romberg (2020), section 3.2. Parallel (program (3.5)): every layer reproduces
its outputs from the inputs that it has in the unpruned network. Cascade (Algorithm 3.1): from the inputs that the
layers pruned before leave it; the radius is then gamma times the error that its own weights make of these, and what
they put out where the layer was silent is allowed.

Bounds
------
Let e_l be the distance of the outputs of layer l, pruned from unpruned, over all samples (Frobenius), and
a_l = ||W_l||_1 the sum of its absolute weights, without the bias: the bias is the same for both. Parallel,

    e_l <= a_l e_(l-1) + epsilon_l,        cascade,        e_1 <= epsilon_1,   e_l <= gamma_l a_l e_(l-1).

Theorems 3.1 and 3.2 are these for a_l = 1, the normalised network: a layer divided by a_l, its bias and everything
before it by the product of the factors so far, has the same outputs up to a factor, since a ReLU is homogeneous. Here
the weights stay as they are and the factors a_l stand in the bound. They hold because the l1 norm of the pruned
weights is not larger than that of the layer's own, which are feasible, and bounds the spectral norm. A function between
two layers (pooling, flattening) must not increase distances. Reweighted rounds shrink another norm: the parallel bound
then has the pruned weights' own a_l, which is known only afterwards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nettrim.budget import Allocation
from nettrim.flow import SCHEMES, after, check_network, chosen_layers, run, split
from nettrim.how import How
from nettrim.layer import Layer, PrunedLayer, kind_of, prune_layer
from nettrim.patterns import densities_for, numbers_for
from nettrim.problem import warn
from nettrim.report import to_json, write_atomically
from nettrim.units import align

__all__ = [
    "SCHEMES",
    "LayerReport",
    "PrunedNetwork",
    "describe",
    "prune",
    "table",
    "warn_of_few_samples",
]

#: held-out error over that on the calibration samples from which these are said to be too few
APART = 2.0


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer.

    Attributes
    ----------
    name, kind : str
        Kind is "dense" or "convolution", with "ReLU" or "linear".
    status : str
    weights, kept : int
        Weights and biases, and how many are not zero.
    epsilon : float
        Radius relative to the outputs on Omega.
    discrepancy : float
        Error of the outputs on Omega, relative, on the inputs that the layer was pruned with.
    gap : float or None
        Of the certificate; None for methods without a dual bound.
    violation : float
        Of the certificate; without a gap, what exceeds the bounds off Omega.
    flips : int
    samples : int
        P of the layer's problem.
    seconds : float
    round : int
        Of reweighted l1 that the weights are from; the gap is that of its weighted norm, and of the l1 norm if it is 1.
    bound : float or None
        Bound of the distance of the outputs, pruned from unpruned network, relative to the outputs; None where the
        layers do not simply follow each other.
    error : float or None
        That distance, measured on the calibration samples.
    holdout : float or None
        And on the samples that were held out.
    """

    name: str
    kind: str
    status: str
    weights: int
    kept: int
    epsilon: float
    discrepancy: float
    gap: float | None
    violation: float
    flips: int
    samples: int
    seconds: float
    round: int = 1
    bound: float | None = None
    error: float | None = None
    holdout: float | None = None

    @property
    def density(self) -> float:
        """Fraction of weights and biases kept."""
        return self.kept / self.weights


@dataclass(frozen=True)
class PrunedNetwork:
    """Layers after pruning, with a report for each.

    Attributes
    ----------
    layers : list of Layer
    between : list
        The functions between them.
    reports : list of LayerReport
        Of the layers that were pruned.
    scheme : str
    """

    layers: list[Layer]
    between: list[Callable[[np.ndarray], np.ndarray] | None]
    reports: list[LayerReport]
    scheme: str

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs of the pruned network."""
        return run(self.layers, self.between, inputs)[-1]

    def __repr__(self) -> str:
        return f"PrunedNetwork({len(self.layers)} layers, {self.scheme}, {self.kept:.1%} kept)"

    @property
    def kept(self) -> float:
        """Fraction of all weights and biases that are not zero, of all layers."""
        return sum(layer.nnz for layer in self.layers) / sum(layer.size for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [asdict(r) | {"density": r.density} for r in self.reports]
        return {"scheme": self.scheme, "kept": self.kept, "layers": rows}

    def table(self) -> str:
        """The reports as text."""
        return table(self.reports)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights and the report as an npz file, whole or not at all; `numpy.load` reads it.

        Parameters
        ----------
        path : path
            Receives "NAME.weight" and "NAME.bias" of each layer, and "report", the JSON text of `to_dict`.
        """
        arrays: dict[str, Any] = {}
        for layer in self.layers:
            arrays[f"{layer.name}.weight"] = layer.weight
            if layer.bias is not None:
                arrays[f"{layer.name}.bias"] = layer.bias
        with write_atomically(path) as file:
            np.savez(file, report=np.array(to_json(self.to_dict())), **arrays)


def table(reports: Sequence[LayerReport]) -> str:
    """Reports as text, a line a layer; columns that no report fills are left out."""
    titles = (
        *("layer", "kind", "status", "kept", "round", "epsilon", "gap", "violation"),
        *("error", "held out", "bound", "seconds"),
    )
    reweighted = any(r.round > 1 for r in reports)
    rows = [
        (
            *(r.name, r.kind, r.status, f"{r.density:.2%}", str(r.round) if reweighted else ""),
            *(f"{r.epsilon:.2%}", "" if r.gap is None else f"{r.gap:.1e}", f"{r.violation:.1e}"),
            *(_percent(r.error), _percent(r.holdout), _percent(r.bound), f"{r.seconds:.1f}"),
        )
        for r in reports
    ]
    return align((titles, *rows), left=3)


def _percent(value: float | None) -> str:
    """Bounds grow with the product of the layers' norms: powers of ten where per cent would be absurd."""
    return "" if value is None else f"{value:.2%}" if value < 10 else f"{value:.0e}"


def prune(
    layers: Sequence[Layer],
    inputs: np.ndarray,
    epsilon: float | Mapping[str, float] | None = None,
    scheme: str = "parallel",
    *,
    density: float | Mapping[str, float] | Allocation | None = None,
    method: str = "auto",
    gamma: float | Mapping[str, float] = 1.1,
    between: Sequence[Callable[[np.ndarray], np.ndarray] | None] | None = None,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    rounds: int = 1,
    refit: str | None = None,
    effort: str = "default",
    penalty: str | None = None,
    pattern: str | None = None,
    holdout: float = 0.1,
    samples: int | None = None,
    seed: int = 0,
    penalise_bias: bool = True,
    progress: Callable[[LayerReport], Any] | None = None,
    client: Any = None,
    **settings: Any,
) -> PrunedNetwork:
    """Prune the layers of a network.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> sizes = [20, 30, 10]
    >>> layers = [nt.Layer(rng.standard_normal((m, n)) ** 3 / n, name=f"fc{k}", relu=k == 0)
    ...           for k, (n, m) in enumerate(zip(sizes, sizes[1:]))]
    >>> pruned = nt.prune(layers, rng.standard_normal((400, 20)), epsilon=0.1)
    >>> [report.status for report in pruned.reports], pruned.kept < 0.9
    (['solved', 'solved'], True)

    Parameters
    ----------
    layers : sequence of Layer
        In order; names must differ. The last one usually has ``relu=False``.
    inputs : (B, ...) array
        Samples of what goes into the first, batch first.
    epsilon : float or mapping of name patterns to floats, optional
        Error of a layer relative to its outputs on Omega; in the cascade scheme that of the first pruned layer. The
        first pattern that fits counts. 0.05 if there is no density either.
    scheme : {"parallel", "cascade"}
        With a density, "cascade" means that a layer reproduces its outputs from what the pruned layers before it give.
    density : float or mapping of name patterns to floats or Allocation, optional
        In place of an error: the fraction of each layer's weights to keep; biases stay and do not count. What
        `allocate` returns has one for each layer.
    method : {"auto", "admm", "working_set", "l0", "magnitude", "random", "wanda", "sparsegpt", "alps"}
        The first three are l1, with a gap in its certificate, by one of its solvers. "l0", the search of `l0`, and the
        others need a density.
    gamma : float or mapping of name patterns to floats
        Slackness of the cascade's further layers, at least 1.
    between : sequence of callables or None, optional
        For each layer, a function of its outputs before they go on (pooling, flattening), or None.
    targets, ignore : sequence of str
        Patterns of the names of layers to prune, and not to; see `matches`.
    rounds : int
        Of reweighted l1 in each layer, at most; more than 1 keeps fewer weights within the same errors, see `sparsest`.
    refit : {None, "free", "within"}
        Of what l1 has found, to a smaller error on the same support: within the constraints, or free of them. A layer
        that it makes worse on the samples held out stays as it was. After the compared pruners "free" is least squares.
    effort : {"fast", "default", "thorough"}
        Of the search of `l0`.
    penalty : {None, "inputs", "outputs"}
        A group norm in the place of l1: a layer stops reading whole inputs (a convolution input channels), or whole
        outputs become constant.
    pattern : str, optional
        "n:m", such as "2:4", in place of an error or a density: at most n of m consecutive inputs of a neuron. Not by
        l1; of convolutions the entries of a kernel come one after another.
    holdout : float
        Fraction of the samples that are kept back, to measure errors on; 0 for none.
    samples : int, optional
        Calibrate on so many of the others, drawn at random.
    seed : int
        Of the draws.
    penalise_bias : bool
        Whether biases count in the l1 norm.
    progress : callable, optional
        Called with the `LayerReport` of each layer when it is done.
    client : str or distributed.Client, optional
        A Dask cluster over which the layers of the parallel scheme are solved beside each other: ``"processes"`` or
        ``"threads"`` of this machine, a scheduler's address, or a client. See `nettrim.distributed`.
    **settings
        Those of `Settings`, and `dtype`.

    Returns
    -------
    PrunedNetwork

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.

    Warns
    -----
    UserWarning
        The error of a layer on the samples held out is more than twice that on the others, or there were too few to
        hold any back.
    """
    layers, between = check_network(layers, between, inputs, scheme, holdout, samples, targets, ignore)
    chosen = chosen_layers(layers, targets, ignore)
    how = How(method, rounds, refit, effort, penalty, pattern)
    names = [layer.name for layer, c in zip(layers, chosen, strict=True) if c]
    wanted: Any = how.density(epsilon, density.densities if isinstance(density, Allocation) else density)
    how.check_inputs((layer.name, layer.weight[0].size) for layer, c in zip(layers, chosen, strict=True) if c)
    if wanted is None:
        numbers = iter(numbers_for(names, scheme, 0.05 if epsilon is None else epsilon, gamma))
    else:
        numbers = iter(densities_for(names, wanted))
    calibration, held_out = split(inputs, holdout, samples, seed)
    # what arrives at a layer, in the unpruned and in the pruned network
    arriving = {"calibration": (calibration, calibration)}
    if held_out is not None:
        arriving["held out"] = held_out, held_out
    solve: Callable[..., PrunedLayer] = prune_layer
    if client is not None:
        if scheme != "parallel":
            raise ValueError('client is for scheme="parallel": a layer of the cascade waits for those before it')
        given_numbers = "epsilon" if wanted is None else "density", list(numbers)
        common = {"how": how, "penalise_bias": penalise_bias, **settings}
        solved = _beside(client, layers, between, chosen, (calibration, held_out), given_numbers, common)
        numbers = iter(given_numbers[1])

        def solve(layer: Layer, *_: Any, **__: Any) -> PrunedLayer:
            return solved[layer.name]

    pruned, reports, bound, first = list(layers), [], 0.0, True
    for k, layer in enumerate(layers):
        given, current = arriving["calibration"]
        outputs = {name: layer(pair[0]) for name, pair in arriving.items()}
        result = None
        if not chosen[k]:
            bound *= layer.amplification()
        else:
            fed = current if scheme == "cascade" else given
            options: dict[str, Any] = {"how": how, "penalise_bias": penalise_bias, **settings}
            if "held out" in arriving:
                options["heldout"] = arriving["held out"][scheme == "cascade"], outputs["held out"]
            if wanted is not None:
                options["density"] = next(numbers)
                if scheme == "cascade" and not first and how.l1:
                    # small errors may be out of reach otherwise
                    options["slack"] = 1.0, layer.linear(fed)
                result = solve(layer, fed, outputs["calibration"], **options)
                # in the cascade scheme it was measured against the unpruned network's outputs
                before = bound * result.layer.amplification() if scheme == "parallel" else 0.0
                bound = before + result.distance
            elif scheme == "parallel" or first:
                options["epsilon"] = next(numbers)
                result = solve(layer, fed, outputs["calibration"], **options)
                # the pruned weights' l1 norm is bounded by all that counts in it, unless it was another that shrank
                l1 = rounds == 1 and refit is None and penalty is None
                grows = layer.amplification(with_bias=penalise_bias) if l1 else result.layer.amplification()
                bound = bound * grows + result.distance
            else:
                slackness = next(numbers)
                result = solve(layer, fed, outputs["calibration"], slack=(slackness, layer.linear(fed)), **options)
                # a refit free of the constraints is free of what follows from them
                bound = math.inf if refit == "free" else bound * slackness * layer.amplification()
            pruned[k], first = result.layer, False
        left = {name: pruned[k](pair[1]) for name, pair in arriving.items()}
        if result is not None:
            reports.append(_report(layer, result, outputs, left, bound))
            if progress is not None:
                progress(reports[-1])
        arriving = {name: (after(between[k], outputs[name]), after(between[k], left[name])) for name in arriving}
    warn_of_few_samples(reports, holdout)
    return PrunedNetwork(pruned, between, reports, scheme)


def _beside(
    client: Any,
    layers: list[Layer],
    between: list[Callable[[np.ndarray], np.ndarray] | None],
    chosen: list[bool],
    samples: tuple[np.ndarray, np.ndarray | None],
    number: tuple[str, list[float]],
    options: dict[str, Any],
) -> dict[str, PrunedLayer]:
    """The chosen layers of the parallel scheme, by their names, as tasks of a cluster."""
    # only who has a cluster needs it
    from nettrim.distributed.cluster import connect
    from nettrim.distributed.fan import Job, fan_out

    what, numbers = number
    threads, callback = options.pop("n_threads", None), options.pop("callback", None)

    def jobs() -> Iterator[Job]:
        arriving, left = list(samples), iter(numbers)
        for k, layer in enumerate(layers):
            outputs = [None if a is None else layer(a) for a in arriving]
            if chosen[k]:
                own = {**options, what: next(left)}
                if arriving[1] is not None:
                    own["heldout"] = arriving[1], outputs[1]
                yield Job(f"nettrim-layer-{layer.name}", k, prune_layer, (layer, arriving[0], outputs[0]), own)
            arriving = [None if a is None else after(between[k], a) for a in outputs]

    with connect(client) as there:
        return {layers[job.index].name: made for job, made in fan_out(there, jobs(), callback, threads)}


def warn_of_few_samples(reports: Sequence[LayerReport], holdout: float) -> None:
    """A warning if held-out errors are far from those on the calibration samples, or cannot be had."""
    if holdout > 0 and all(r.holdout is None for r in reports):
        warn(
            f"too few samples: holdout {holdout:g} of them is none, so nothing is known of the errors on others; give "
            "more, several times as many as a layer has inputs"
        )
    apart = [r for r in reports if r.holdout is not None and r.holdout > APART * r.error]
    if apart:
        worst = max(apart, key=lambda r: r.holdout / max(r.error, 1e-300))
        warn(
            f"too few samples: held out, the error of {', '.join(r.name for r in apart)} is more than {APART:g} times "
            f"that on the calibration samples ({worst.name}: {worst.holdout:.2%} against {worst.error:.2%})"
        )


def describe(old: Layer, made: PrunedLayer) -> LayerReport:
    """Report of a layer by itself, without its place in a network."""
    return LayerReport(
        name=old.name,
        kind=kind_of(old),
        status=str(made.status),
        weights=old.size,
        kept=made.layer.nnz,
        epsilon=made.epsilon / (made.size or 1.0),
        discrepancy=made.discrepancy,
        gap=made.gap,
        violation=made.violation,
        flips=made.flips,
        samples=made.samples,
        seconds=made.seconds,
        round=made.round,
    )


def _report(
    old: Layer, made: PrunedLayer, outputs: dict[str, np.ndarray], left: dict[str, np.ndarray], bound: float
) -> LayerReport:
    """From the outputs of the layer in the unpruned and in the pruned network."""
    norms = {name: _norm(a) or 1.0 for name, a in outputs.items()}
    errors = {name: _norm(left[name] - a) / norms[name] for name, a in outputs.items()}
    relative = bound / norms["calibration"] if math.isfinite(bound) else None
    return replace(describe(old, made), bound=relative, error=errors["calibration"], holdout=errors.get("held out"))


def _norm(a: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(a, dtype=np.float64))))

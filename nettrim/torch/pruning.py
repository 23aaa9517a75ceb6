"""Prune the layers of a torch model: what each computes is observed on calibration batches, the rest is nettrim's."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from nettrim.budget import Allocation
from nettrim.flow import SCHEMES
from nettrim.how import How
from nettrim.network import LayerReport, warn_of_few_samples
from nettrim.patterns import densities_for, numbers_for
from nettrim.settings import Settings
from nettrim.torch.capture import (
    Arguments,
    arguments_of,
    batches_of,
    check_arguments,
    digest,
    evaluating,
    observe,
    split,
    state_digest,
)
from nettrim.torch.fold import fold_batch_norm
from nettrim.torch.graph import Target, find_targets, layer_of
from nettrim.torch.layer_run import LayerRun, plain
from nettrim.torch.planning import plan_of
from nettrim.torch.programs import Programs
from nettrim.torch.pruned import PrunedModel
from nettrim.units import to_bytes

__all__ = ["PrunedModel", "prune"]


def prune(
    model: nn.Module,
    loader: Iterable[Any],
    epsilon: float | Mapping[str, float] | None = None,
    scheme: str = "parallel",
    *,
    density: float | Mapping[str, float] | Allocation | None = None,
    method: str = "auto",
    gamma: float | Mapping[str, float] = 1.1,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    arguments: Arguments = arguments_of,
    samples: int | None = None,
    rounds: int = 1,
    refit: str | None = None,
    effort: str = "default",
    penalty: str | None = None,
    pattern: str | None = None,
    holdout: float = 0.1,
    fold: bool = True,
    penalise_bias: bool = True,
    memory: str | float = "4GB",
    directory: str | os.PathLike[str] | None = None,
    inplace: bool = False,
    progress: Callable[[LayerReport], Any] | None = None,
    client: Any = None,
    **settings: Any,
) -> PrunedModel:
    """Prune the Linear, Conv1d and Conv2d layers of a model, with a certificate for each.

    A layer that a ReLU follows gets the ReLU program on its outputs, any other the linear program on its
    pre-activations, which needs only second moments. See `nettrim.prune` for the schemes.

    Parameters
    ----------
    model : nn.Module
        Trained. It is copied, unless `inplace`; its mode, device and gradients are as before afterwards.
    loader : iterable of batches
        Samples to calibrate on, as for training; labels are not used. They are read once and kept.
    epsilon : float or mapping of name patterns to floats, optional
        Error of a layer relative to its outputs; in the cascade scheme that of the first layer. The first pattern that
        fits counts. 0.05 if there is no density either.
    scheme : {"parallel", "cascade"}
    density : float or mapping of name patterns to floats or Allocation, optional
        In place of an error: the fraction of each layer's weights to keep; biases stay and do not count. What
        `allocate` returns has one for each layer, and its curves become part of the report.
    method : {"auto", "admm", "working_set", "l0", "magnitude", "random", "wanda", "sparsegpt", "alps"}
        The first three are l1, with a gap in its certificate, by one of its solvers. "l0", the search of `nettrim.l0`,
        and the others need a density.
    gamma : float or mapping of name patterns to floats
        Slackness of the cascade's further layers.
    targets, ignore : sequence of str
        Patterns of module names to prune, and not to: shell-like, or regular expressions after ``re:``.
    arguments : callable, optional
        (args, kwargs) of the model for a batch. Default: a tensor, the first of a tuple, a mapping as keywords.
    samples : int, optional
        Use so many samples of the loader.
    rounds : int
        Of reweighted l1 in each layer, at most; more than 1 keeps fewer weights within the same errors, see
        `nettrim.sparsest`.
    refit : {None, "free", "within"}
        Of what l1 has found, to a smaller error on the same support, see `nettrim.prune`.
    effort : {"fast", "default", "thorough"}
        Of the search of `nettrim.l0`.
    penalty : {None, "inputs", "outputs"}
        A group norm in the place of l1: a layer stops reading whole inputs (a convolution input channels), or whole
        outputs become constant. `shrink` then makes the model physically smaller.
    pattern : str, optional
        "n:m", such as "2:4", in place of an error or a density: at most n of m consecutive inputs of a neuron. Not by
        l1. See `semi_structured` for GPUs that make use of it.
    holdout : float
        Fraction of them that is held back, to measure errors on.
    fold : bool
        Fold batch norms into the layers before them first.
    penalise_bias : bool
        Whether biases count in the l1 norm.
    memory : str or float
        What a layer's inputs may take in memory ("4GB", or bytes); larger ones go to a temporary file.
    directory : path, optional
        Where finished layers are kept, so that a run that was stopped goes on with the next one.
    inplace : bool
        Prune `model` itself.
    progress : callable, optional
        Called with the `LayerReport` of each layer; its errors are those of the layer alone.
    client : str or distributed.Client, optional
        A Dask cluster over which the layers of the parallel scheme are solved beside each other, as for
        `nettrim.prune`. The model runs here; the workers need PyTorch to round weights as the model holds them.
    **settings
        Those of `Settings`. With ``verbose=True`` the plan is printed first (see `plan`), then each solver's progress.

    Returns
    -------
    PrunedModel

    Raises
    ------
    TypeError, ValueError
        Wrong input, or a layer that cannot be pruned; the message names the argument or the module.
    RuntimeError
        Batch norms could not be folded exactly.

    Warns
    -----
    UserWarning
        The error of a layer on the samples held out is more than twice that on the others, or there were too few to
        hold any back.
    """
    Settings.make(**settings)
    how = How(method, rounds, refit, effort, penalty, pattern)
    allocation = density if isinstance(density, Allocation) else None
    wanted: Any = how.density(epsilon, density if allocation is None else allocation.densities)
    stored = {name: value for name, value in settings.items() if name not in ("callback", "verbose", "n_threads")}
    check_arguments(model, holdout, targets)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if client is not None and scheme != "parallel":
        raise ValueError('client is for scheme="parallel": a layer of the cascade waits for those before it')
    budget = to_bytes(memory)
    calibration, held_out = split(batches_of(loader, samples), holdout)
    given = state_digest(model)
    original = copy.deepcopy(model)
    args, kwargs = arguments(calibration[0])
    folded = fold_batch_norm(original, args, kwargs) if fold else []
    if inplace and folded:
        raise ValueError("inplace=True cannot fold batch norms, which changes the modules: pass fold=False")
    found = find_targets(original, args, kwargs, targets, ignore)
    how.check_inputs((target.name, layer_of(target).weight[0].size) for target in found)
    pruned = copy.deepcopy(original)
    if settings.get("verbose"):
        print(plan_of(original, found, calibration, held_out, arguments, budget, settings.get("n_threads")).table())
    programs = Programs(original, pruned, calibration, arguments, penalise_bias, budget)
    others = Programs(original, pruned, held_out, arguments, penalise_bias, budget) if held_out and refit else None
    run = LayerRun(programs, others, directory, how, settings)
    names = [target.name for target in found]
    if wanted is None:
        epsilon = 0.05 if epsilon is None else epsilon
        numbers, what = numbers_for(names, scheme, epsilon, gamma), "epsilon or gamma"
    else:
        numbers, what = densities_for(names, wanted), "density"
    options = {"scheme": scheme, "rounds": rounds, "penalise_bias": penalise_bias, "holdout": holdout}
    # only where they are not what they have always been: directories of earlier versions stay valid
    options |= {name: value for name, value in asdict(how).items() if value != getattr(How(), name)}
    # with other limits, a layer that is finished is the same
    limits = ("time_limit", "max_iterations")
    making = {name: value for name, value in stored.items() if name not in limits}
    run.begin(found, {what: numbers, **options, **making})
    reports = []
    if client is not None:
        from nettrim.distributed.cluster import connect

        with connect(client) as there:
            reports = run.beside(there, found, numbers, wanted is not None, progress)
    for k, (target, number) in enumerate(zip(found, numbers, strict=True) if client is None else ()):
        # with a count, small errors may be out of reach of l1 otherwise; the other methods keep to no bounds
        slack = scheme == "cascade" and k > 0 and (wanted is None or how.l1)
        reports.append(run.layer(target, k, number, scheme == "cascade", slack, wanted is not None))
        if progress is not None:
            progress(reports[-1])
    errors = [_errors(original, pruned, found, some, arguments) for some in (calibration, held_out)]
    reports = [
        replace(r, error=e, holdout=h)
        for r, e, h in zip(reports, errors[0], errors[1] or [None] * len(reports), strict=True)
    ]
    warn_of_few_samples(reports, holdout)
    if inplace:
        model.load_state_dict(pruned.state_dict())
        pruned = model
    about = {
        **{"epsilon": epsilon, "density": wanted, "gamma": gamma, "samples": samples, **options, **stored},
        **({} if allocation is None else {"allocation": allocation.to_dict()}),
        **{"calibration": digest(calibration, arguments), "original": given},
    }
    return PrunedModel(pruned, reports, scheme, folded, plain(about))


def _errors(
    original: nn.Module, pruned: nn.Module, found: list[Target], batches: list[Any], arguments: Arguments
) -> list[float]:
    """Relative distance of each layer's outputs, after its ReLU, in the two models; empty without batches."""
    if not batches:
        return []
    squares, norms = np.zeros(len(found)), np.zeros(len(found))
    with evaluating(original, pruned):
        for batch in batches:
            seen = [
                observe(m, [m.get_submodule(t.name) for t in found], arguments(batch), "outputs")
                for m in (original, pruned)
            ]
            for k, (target, old, new) in enumerate(zip(found, *seen, strict=True)):
                for a, b in zip(old, new, strict=True):
                    a, b = (np.maximum(x, 0) if target.relu else x for x in (a, b))
                    squares[k] += np.sum(np.square(b - a, dtype=np.float64))
                    norms[k] += np.sum(np.square(a, dtype=np.float64))
    return np.sqrt(np.divide(squares, norms, out=np.zeros_like(norms), where=norms > 0)).tolist()

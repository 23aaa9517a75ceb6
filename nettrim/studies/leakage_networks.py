"""The networks of the leakage study: one trained network, made sparse in every way that the project knows.

All are of one architecture, trained on the same samples. `members` are the samples that the trained network, and all
that is made of it, have seen; the reference networks of the membership attack have seen others.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import nettrim.torch as ntt
from nettrim.bounds.importance import importances, samples_needed, totals
from nettrim.budget import Allocation, best_densities
from nettrim.privacy.accountant import PrivacySpent, epsilon
from nettrim.privacy.checkpoints import Checkpoint, digest, state_digest
from nettrim.privacy.dp_sgd import Mechanism, PoissonBatches, dp_sgd
from nettrim.privacy.iterative import Recipe, iterative, prunable
from nettrim.privacy.layers import evaluation
from nettrim.pruners.coresets import deterministic_weights, random_weights
from nettrim.pruners.neuron_coreset import input_radius, neurons
from nettrim.sparsity import Unstructured, global_counts
from nettrim.studies import training
from nettrim.studies.data import DataSet
from nettrim.studies.pieces import Units
from nettrim.studies.victims import Victim

__all__ = ["METHODS", "Made", "OutOfReach", "Setting", "dense_of", "make", "members", "private", "tune"]

#: columns of a convolution's inputs, and samples, that coresets are drawn from
COLUMNS, CALIBRATION = 2000, 1000
#: of Net-Trim, after which the search for a count goes on with a larger error: smaller ones may take an hour
_ITERATIONS = 1500
Part = tuple[np.ndarray, np.ndarray]


class OutOfReach(ValueError):
    """A method cannot keep so few weights of a network, or says nothing of it at all."""


@dataclass(frozen=True)
class Setting:
    """What is trained, and how.

    Attributes
    ----------
    recipe : Recipe
        Of the dense network and of iterative pruning.
    members : int
        Training samples, the first ones; the others are for the references.
    calibration : int
        Of them, for Net-Trim.
    tuning : int
        Epochs of fine-tuning.
    private_epochs, private_size : int
        Of DP-SGD; the expected batch.
    targets : tuple of float
        Its epsilons.
    delta : float
    victim : Victim
        Without batch norms, which mix samples.
    private_rate : float
        Of learning by DP-SGD.
    """

    recipe: Recipe
    members: int = 30_000
    calibration: int = CALIBRATION
    tuning: int = 2
    private_epochs: int = 10
    private_size: int = 512
    targets: tuple[float, ...] = (8.0, 1.0)
    delta: float = 1e-5
    victim: Victim = field(default_factory=Victim)
    private_rate: float = 1.0


@dataclass
class Made:
    """A network that was pruned, and what its method says of it.

    Attributes
    ----------
    model : nn.Sequential
    seconds : float
    certified : float or None
        Relative error of the outputs on the calibration samples that is proven for the whole network.
    largest : float or None
        Of coresets, the largest relative error that a theorem states for a neuron; 1 or more says nothing.
    privacy : str
        Of DP-SGD, what it has spent.
    tuned : bool
        Whether training goes on after it: private training and iterative pruning have had theirs.
    about : dict
    """

    model: nn.Sequential
    seconds: float = 0.0
    certified: float | None = None
    largest: float | None = None
    privacy: str = ""
    tuned: bool = True
    about: dict[str, Any] = field(default_factory=dict)


def dense_of(
    setting: Setting,
    samples: DataSet,
    folder: Path,
    device: torch.device,
    written: Callable[[], Any],
    wanted: Sequence[int],
) -> tuple[nn.Sequential, dict[float, nn.Sequential]]:
    """The trained network, and what wanted rounds of pruning make of it, by the rounded fraction that is kept.

    `written` is called after each state that is on disk.
    """
    x, y = members(setting, samples)
    victim = setting.victim
    model, rounds = victim.build(setting.recipe.seed, device), {}
    for made in iterative(model, x, y, setting.recipe, folder, victim.augment, written=written):
        if made.number in (0, *wanted):
            rounds[round(made.kept / made.weights, 3)] = copy.deepcopy(model)
    return rounds[1.0], rounds


def make(
    method: str, dense: nn.Sequential, kept: float, setting: Setting, samples: DataSet, units: Units | None = None
) -> Made:
    """Prune a copy of the trained network, on the host.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    dense : nn.Sequential
    kept : float
        Fraction of the weights.
    setting : Setting
    samples : DataSet
    units : Units, optional
        Of what every row shares, and of this one: Net-Trim goes on layer by layer.

    Returns
    -------
    Made
        With the model on the device of `dense`.

    Raises
    ------
    OutOfReach
        The method cannot keep so few weights; the message says what it can.
    """
    made = METHODS[method](copy.deepcopy(dense).cpu(), kept, setting, samples, units)
    made.model.to(next(dense.parameters()).device)
    return made


def _random(model: nn.Sequential, kept: float, setting: Setting, samples: DataSet, units: Units | None) -> Made:
    rng = np.random.default_rng(setting.recipe.seed)
    for weight in prunable(model).values():
        W = weight.detach().numpy()
        _keep(weight, Unstructured(round(kept * W.size)).mask(rng.random(W.size).reshape(1, -1)).reshape(W.shape))
    return Made(model)


def _magnitude(model: nn.Sequential, kept: float, setting: Setting, samples: DataSet, units: Units | None) -> Made:
    weights = list(prunable(model).values())
    sizes = [np.abs(w.detach().numpy()) for w in weights]
    total = sum(s.size for s in sizes)
    for weight, size, count in zip(weights, sizes, global_counts(sizes, round(kept * total)), strict=True):
        _keep(weight, Unstructured(count).mask(size.reshape(1, -1)).reshape(size.shape))
    return Made(model)


def _net_trim(scheme: str, rounds: int) -> Callable[..., Made]:
    def run(model: nn.Sequential, kept: float, setting: Setting, samples: DataSet, units: Units | None) -> Made:
        x, _ = members(setting, samples)
        loader = list(torch.from_numpy(x[: setting.calibration]).split(200))
        densities, seconds = _densities(model, loader, kept, units)
        paused: dict[str, Any] = {}
        if units is not None:
            paused = {"directory": units.place("layers"), "progress": _after_new_layers(units)}
        how: dict[str, Any] = {"density": densities, "scheme": scheme, "rounds": rounds}
        pruned = ntt.prune(model, loader, **how, feas_tol=1e-3, max_iterations=_ITERATIONS, **paused)
        # each layer's own error on its own inputs; what several of them add up to is not proven for this network
        layers = max(report.error for report in pruned.reports)
        seconds += sum(report.seconds for report in pruned.reports)
        return Made(cast(nn.Sequential, pruned.model), seconds, about={"layer_error": layers})

    return run


def _after_new_layers(units: Units) -> Callable[[Any], None]:
    """Asks the clock after each layer that is new on disk; one that fell short is not stored, and is solved again."""
    place = units.place("layers")
    stored = len(list(place.glob("layer_*.npz")))

    def progress(_: Any) -> None:
        nonlocal stored
        now = len(list(place.glob("layer_*.npz")))
        if now > stored:
            stored = now
            units.kept.clock.check()

    return progress


def _densities(
    model: nn.Sequential, loader: list[torch.Tensor], kept: float, units: Units | None
) -> tuple[Allocation, float]:
    """Densities of the layers, and the seconds that their curves have taken; the curves are the same for every row."""
    curves: dict[str, list[tuple[float, float]]] = {}
    shared, seconds = None, 0.0
    if units is not None:
        of = f"curves of {state_digest(model)} on {digest(*(batch.numpy() for batch in loader))}"
        shared = Units(units.kept, of, units.folder)
    weights = {name.removesuffix(".weight"): weight.numel() for name, weight in prunable(model).items()}
    for name in weights:

        def curve(_: Any, name: str = name) -> dict[str, Any]:
            began = time.perf_counter()
            found = ntt.allocate(model, loader, kept, targets=[name]).curves[name]
            return {"curve": found, "seconds": time.perf_counter() - began}

        made = curve(None) if shared is None else shared.once(name, curve)
        curves[name] = [(d, e) for d, e in made["curve"]]
        seconds += made["seconds"]
    return best_densities(curves, weights, kept), seconds


def _coreset(prune: Callable[..., Any]) -> Callable[..., Made]:
    def run(model: nn.Sequential, kept: float, setting: Setting, samples: DataSet, units: Units | None) -> Made:
        x, _ = members(setting, samples)
        largest = 0.0
        for module, X in _inputs(model, x[: setting.calibration]):
            W = module.weight.detach().numpy().reshape(len(module.weight), -1).T
            # which weights have any depends on the samples, so that the coreset is of these and no others
            X = X[:, : samples_needed(int(np.count_nonzero(W)), 0.5)]
            try:
                s = importances(W, X)
                # a sampled coreset has a weight of every half at least, and of no weight without importance
                fewest, most = np.count_nonzero(totals(W, s)), np.count_nonzero(s)
                count = int(np.clip(round(kept * W.size), fewest, most))
                core = prune(W, X, nnz=count, samples=X.shape[1], seed=setting.recipe.seed)
            except ValueError as error:
                raise OutOfReach(str(error)) from error
            largest = max(largest, float(core.epsilon.max()))
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(core.W.T.reshape(module.weight.shape).copy()))
        return Made(model, largest=largest)

    return run


def _neurons(model: nn.Sequential, kept: float, setting: Setting, samples: DataSet, units: Units | None) -> Made:
    x, _ = members(setting, samples)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(linear) != 3:
        raise OutOfReach("neurons are those of two hidden linear layers, which this network does not have")
    convolutions = sum(w.numel() for w in prunable(model).values() if w.ndim == 4)
    # first, second and last layer after a part c of the neurons of either hidden layer is kept
    a, b, d = linear[0].weight.numel(), linear[1].weight.numel(), linear[2].weight.numel()
    wanted = kept * (convolutions + a + b + d) - convolutions
    part = (-(a + d) + math.sqrt((a + d) ** 2 + 4 * b * max(wanted, 0))) / (2 * b)
    if wanted <= 0 or part * linear[1].out_features < 1:
        lowest = (convolutions + (a + d) / 84 + b / 84**2) / (convolutions + a + b + d)
        raise OutOfReach(f"neurons of the linear layers alone: at least {lowest:.1%} of the weights are kept")
    inputs = {id(module): X for module, X in _inputs(model, x[: setting.calibration])}
    largest = 0.0
    for one, two in pairwise(linear):
        W_in = np.vstack([one.weight.detach().numpy().T, one.bias.detach().numpy()])
        radius = input_radius(inputs[id(one)], bias=True)
        count = max(1, round(part * one.out_features))
        core = neurons(W_in, two.weight.detach().numpy().T, radius, count=count, seed=setting.recipe.seed)
        kept_neurons = torch.from_numpy(core.kept)
        with torch.no_grad():
            two.weight.copy_(torch.from_numpy(core.W_out.T.copy()))
            one.weight[~kept_neurons] = 0
            one.bias[~kept_neurons] = 0
        largest = max(largest, core.epsilon)
    return Made(model, about={"additive": largest})


METHODS: dict[str, Callable[..., Made]] = {
    "random": _random,
    "magnitude": _magnitude,
    "Net-Trim, parallel": _net_trim("parallel", 1),
    "Net-Trim, cascade": _net_trim("cascade", 1),
    "Net-Trim, reweighted": _net_trim("parallel", 4),
    "coreset, random weights": _coreset(random_weights),
    "coreset, deterministic weights": _coreset(deterministic_weights),
    "coreset, neurons": _neurons,
}


def private(
    setting: Setting,
    samples: DataSet,
    target: float,
    masks: dict[str, np.ndarray] | None = None,
    device: torch.device | str = "cpu",
    units: Units | None = None,
) -> Made:
    """Trained by DP-SGD from the start, within an epsilon; a mask that was learned is not paid for by it."""
    x, y = members(setting, samples)
    model = setting.victim.build(setting.recipe.seed, device)
    batches = PoissonBatches(x, y, setting.private_size, setting.recipe.seed)
    steps = setting.private_epochs * len(batches)
    sigma, spent = _noise_for(target, steps, batches.rate, setting.delta, masks is not None)

    def train(model: nn.Module, state: Checkpoint | None) -> None:
        mechanism, seed = Mechanism(1.0, sigma), setting.recipe.seed
        dp_sgd(
            *(model, batches, setting.private_epochs, setting.private_rate, mechanism, masks, seed), checkpoint=state
        )

    if units is None:
        train(model, None)
    else:
        units.network("DP-SGD", model, train)
    return Made(model.eval(), privacy=str(spent), tuned=False, about={"sigma": sigma, "epsilon": spent.epsilon})


def _noise_for(target: float, steps: int, rate: float, delta: float, masked: bool) -> tuple[float, PrivacySpent]:
    """The smallest sigma, to a hundredth, that keeps to an epsilon."""
    low, high = 0.3, 50.0
    while high - low > 0.01:
        middle = (low + high) / 2
        spent = epsilon(steps, rate, middle, delta, masked, "rdp")
        low, high = (low, middle) if spent.epsilon <= target else (middle, high)
    return high, epsilon(steps, rate, high, delta, masked, "rdp")


def tune(model: nn.Module, setting: Setting, samples: DataSet, state: Checkpoint | None = None) -> None:
    """Train what is left as the dense network was; `state` keeps how far that is."""
    masks = {name: weight.detach() != 0 for name, weight in prunable(model).items()}
    recipe, augment = setting.recipe, setting.victim.augment
    batches = training.Batches(*members(setting, samples), recipe.size, recipe.seed, augment)
    training.sgd(model, batches, setting.tuning, recipe.rate, recipe.momentum, masks=masks, checkpoint=state)


def members(setting: Setting, samples: DataSet) -> Part:
    """The samples that the network is trained on."""
    x, y = samples.train
    return x[: setting.members], y[: setting.members]


def _keep(weight: torch.Tensor, mask: np.ndarray) -> None:
    with torch.no_grad():
        weight.mul_(torch.from_numpy(mask))


def _inputs(model: nn.Sequential, x: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    """Each linear and convolution layer and its inputs (N, columns), windows of convolutions chosen at random."""
    rng = np.random.default_rng(0)
    found: list[tuple[Any, np.ndarray]] = []

    def seen(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        (h,) = arguments
        if isinstance(module, nn.Linear):
            found.append((module, h.numpy().T.copy()))
            return
        padding: Any = module.padding
        windows = nn.functional.unfold(h, module.kernel_size, padding=padding, stride=module.stride)
        columns = windows.transpose(0, 1).flatten(1).numpy()
        # where nothing enters, nothing is decided
        columns = columns[:, columns.any(0)]
        count = min(COLUMNS, columns.shape[1])
        found.append((module, columns[:, rng.choice(columns.shape[1], count, replace=False)]))

    chosen = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    handles = [module.register_forward_pre_hook(seen) for module in chosen]
    try:
        with torch.no_grad(), evaluation(model):
            model(torch.from_numpy(x))
    finally:
        for handle in handles:
            handle.remove()
    return found

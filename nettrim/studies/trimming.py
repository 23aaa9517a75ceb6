"""What the studies of Net-Trim's own paper share: networks pruned within errors, truncated ones beside them, training.

A network is trained once for each seed and pruned once for each way of pruning: weights and finished layers are kept in
the study's folder, which studies may share. Weights count; biases stay or go as the program has it, and do not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nettrim.torch as ntt
from nettrim.pruners.magnitude import magnitude
from nettrim.sparsity import Unstructured
from nettrim.studies import data, training
from nettrim.studies.batches import Augment
from nettrim.studies.data import DataSet
from nettrim.studies.networks import Case, hashed, trained, weaken_dropout

__all__ = [
    "FC",
    "LENET",
    "Trim",
    "calibration_of",
    "described",
    "fewer",
    "layers_of",
    "of_seeds",
    "sparsity",
    "trim",
    "truncate",
    "tune",
    "zeros",
]

#: of the certificates: the paper's solver stops after 2000 iterations, which proves nothing
_TOLERANCES: dict[str, Any] = {"gap_tol": 1e-2, "feas_tol": 3e-3}
#: of the cascade: the published gamma^2 is 1.1
GAMMA = 1.1**0.5
#: the trained networks that the cpu presets share
FC = Case("fc, no dropout", "mnist", 5, 1000, ())
LENET = Case("lenet5", "mnist", 3, 500, (), rate=2e-3)
#: of fine-tuning: the paper's rate; with momentum, a step counts for about ten of the paper's, which has none
RATE, MOMENTUM, BATCH = 0.01, 0.9, 100


@dataclass(frozen=True)
class Trim:
    """One application of Net-Trim to a network.

    Attributes
    ----------
    epsilon : float
        Error of a layer over its outputs, the same for all layers; of the first one in the cascade.
    samples : int
        Training samples that the programs are made of.
    scheme : {"parallel", "cascade"}
    subset : int
        Which samples: another number draws others.
    rounds : int
        Of reweighted l1, at most.
    targets : tuple of str
        Patterns of the layers' names.
    """

    epsilon: float
    samples: int
    scheme: str = "parallel"
    subset: int = 0
    rounds: int = 1
    targets: tuple[str, ...] = ("*",)


def of_seeds(case: Case, folder: Path, say: Callable[[str], Any]) -> Callable[[int], tuple[DataSet, nn.Module]]:
    """A function that gives, and keeps, the samples and the trained network of a seed: studies go round the seeds."""

    @cache
    def made(seed: int) -> tuple[DataSet, nn.Module]:
        samples = data.load(case.data, seed)
        return samples, trained(case, samples, seed, folder, say)

    return made


def calibration_of(samples: DataSet, seed: int, count: int, subset: int = 0) -> np.ndarray:
    """So many training inputs, drawn at random by seed and subset."""
    order = np.random.default_rng((seed, subset)).permutation(len(samples.train[0]))
    return samples.train[0][order[:count]]


def fewer(samples: DataSet, count: int | None) -> DataSet:
    """The same set with the first so many training samples only; all for None."""
    x, y = samples.train
    return replace(samples, train=(x[:count], y[:count]))


def trim(model: nn.Module, samples: DataSet, seed: int, how: Trim, folder: Path | None = None) -> ntt.PrunedModel:
    """The pruned network, by `nettrim.torch.prune`.

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    samples : DataSet
    seed : int
        Of the samples that are drawn.
    how : Trim
    folder : Path, optional
        Of this network alone: finished layers are kept in it.

    Returns
    -------
    PrunedModel
    """
    return ntt.prune(
        model,
        list(torch.from_numpy(calibration_of(samples, seed, how.samples, how.subset)).split(200)),
        how.epsilon,
        how.scheme,
        gamma=GAMMA,
        rounds=how.rounds,
        targets=how.targets,
        holdout=0.0,
        directory=None if folder is None else folder / hashed({**asdict(how), "seed": seed}),
        **_TOLERANCES,
    )


def layers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights, without biases, of the linear and convolution layers, by the layers' names."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, kinds)}


def zeros(model: nn.Module) -> dict[str, float]:
    """Fraction of each layer's weights that are zero."""
    return {name: 1 - int(torch.count_nonzero(W)) / W.numel() for name, W in layers_of(model).items()}


def sparsity(model: nn.Module) -> float:
    """Fraction of all weights that are zero."""
    weights = layers_of(model).values()
    return 1 - sum(int(torch.count_nonzero(W)) for W in weights) / sum(W.numel() for W in weights)


def truncate(model: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of which each layer keeps its largest weights, as many as that of another network has (HPTD's first step).

    Parameters
    ----------
    model, like : nn.Module
        With the same layers.

    Returns
    -------
    nn.Module
    """
    made, counts = copy.deepcopy(model), layers_of(like)
    with torch.no_grad():
        for name, W in layers_of(made).items():
            left = int(torch.count_nonzero(counts[name]))
            W.copy_(torch.from_numpy(magnitude(W.flatten(1).numpy(), Unstructured(left))).reshape(W.shape))
    return made


def tune(
    model: nn.Module,
    samples: DataSet,
    epochs: int,
    seed: int,
    augment: Augment | None = None,
    progress: Callable[[int, float], Any] | None = None,
    rate: float = RATE,
) -> None:
    """Train what is left, in place, as the paper's FT step does: stochastic gradients, on the non-zeros.

    Parameters
    ----------
    model : nn.Module
        Zero weights stay zero.
    samples : DataSet
        Of which the training part is used.
    epochs, seed : int
    augment : callable, optional
        See `training.Batches`.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.
    rate : float
        Of the steps.
    """
    if epochs:
        torch.manual_seed(seed)
        weaken_dropout(model, 1 - sparsity(model))
        ntt.finetune(
            model,
            training.Batches(*samples.train, size=BATCH, seed=seed, augment=augment),
            nn.functional.cross_entropy,
            torch.optim.SGD(model.parameters(), rate, MOMENTUM),
            epochs,
            progress,
            names=[f"{name}.weight" for name in layers_of(model)],
        )


def described(pruned: ntt.PrunedModel) -> dict[str, Any]:
    """What every record says of a pruning: zeros, and how the programs ended."""
    return {
        "zeros": sparsity(pruned.model),
        "layers": zeros(pruned.model),
        "statuses": [report.status for report in pruned.reports],
        "gaps": [report.gap for report in pruned.reports],
        "prune_seconds": sum(report.seconds for report in pruned.reports),
    }

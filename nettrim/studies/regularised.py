"""Net-Trim after training with Dropout, with an l1 penalty, and with both: Figures 4 and 5 of Aghasi et al. (2020).

A network is trained with each pair of a Dropout rate and a penalty on the l1 norm of its weights. What training leaves
below a threshold is set to zero ("trained"); Net-Trim prunes that network further. Both are fine-tuned on what is left.
Figure 5 is the question whether a penalty alone, without Dropout, does what Net-Trim does to a network that was trained
without either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nettrim.studies import data, models, training
from nettrim.studies.networks import hashed, remembered
from nettrim.studies.records import Records
from nettrim.studies.regularised_report import plot, tables
from nettrim.studies.trimming import Trim, fewer, layers_of, sparsity, trim, tune

__all__ = ["KEY", "PRESETS", "Config", "Part", "cleared", "plot", "run", "tables"]

#: what tells records apart
KEY = ("network", "dropout", "penalty", "method", "epsilon", "seed", "recipe")

_BUILDERS: dict[str, Callable[[float], nn.Module]] = {
    "fc": lambda dropout: models.fully_connected(dropout=dropout),
    "fc, small": lambda dropout: models.fully_connected((784, 30, 20, 10), dropout),
    "lenet5": models.lenet5,
    "lenet, 32-64-512": lambda dropout: models.net_trim_lenet(dropout=dropout),
}
#: weights smaller than it count as zero: Adam with a rate that has decayed leaves them within about 1e-4 of it
THRESHOLD = 1e-3


@dataclass(frozen=True)
class Part:
    """A network and how it is trained and pruned.

    Attributes
    ----------
    network : str
        One of the builders'.
    pairs : tuple of (float, float)
        Dropout rates and penalties.
    epsilons : tuple of float
        Of Net-Trim, for the network that was trained without either.
    calibration : int
        Training samples that the programs are made of.
    further : tuple of float
        Of Net-Trim, for the others.
    """

    network: str
    pairs: tuple[tuple[float, float], ...]
    epsilons: tuple[float, ...]
    calibration: int
    further: tuple[float, ...] = ()


@dataclass(frozen=True)
class Config:
    """Networks and training.

    Attributes
    ----------
    parts : tuple of Part
    data : str
        See `nettrim.studies.data.load`.
    samples : int, optional
        Training samples, also of fine-tuning; default all.
    epochs : int
        Of training.
    tuning : int
        Epochs of fine-tuning.
    rate : float
        Of training, at its beginning.
    images : int, optional
        Test images, the first so many; default all.
    seeds : tuple of int
    """

    parts: tuple[Part, ...]
    data: str = "mnist"
    samples: int | None = None
    epochs: int = 20
    tuning: int = 30
    rate: float = 1e-3
    images: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    def recipe(self, part: Part) -> str:
        """A short name for what makes a record of a part, but for what its key says."""
        made = {k: v for k, v in asdict(self).items() if k not in ("parts", "seeds")}
        return hashed({**made, "calibration": part.calibration})


_PENALTIES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
_PUBLISHED = (0.02, 0.06, 0.1, 0.2, 0.4)
PRESETS = {
    "smoke": Config(
        (Part("fc, small", ((0.0, 0.0), (0.3, 0.0), (0.0, 1e-3), (0.3, 1e-3)), (0.1, 0.2), 100, (0.2,)),),
        *("synthetic_images", None, 2, 1),
        seeds=(0, 1),
    ),
    "cpu": Config(
        (
            Part("lenet5", ((0.0, 0.0), (0.5, 0.0), (0.0, 1e-4), (0.0, 1e-3), (0.5, 1e-4)), (0.1, 0.3), 500, (0.2,)),
            Part("fc", ((0.0, 0.0), (0.0, 1e-5), (0.0, 1e-4), (0.0, 1e-3)), (0.1, 0.3), 500),
        ),
        *("mnist", 10_000, 12, 2),
        images=5000,
    ),
    "paper": Config(
        (
            Part(
                "lenet, 32-64-512",
                (
                    *((rate, 0.0) for rate in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
                    *((0.0, penalty) for penalty in _PENALTIES),
                    *((rate, penalty) for rate in (0.5, 0.6, 0.75) for penalty in (1e-5, 5e-5, 2e-4)),
                ),
                *(_PUBLISHED, 10_000, _PUBLISHED),
            ),
            Part("fc", ((0.0, 0.0), *((0.0, penalty) for penalty in _PENALTIES)), _PUBLISHED, 55_000),
        ),
        seeds=tuple(range(10)),
    ),
}


def run(config: Config, records: Records, folder: Path, say: Callable[[str], Any] = print) -> None:
    """Do what is not in the records yet.

    Parameters
    ----------
    config : Config
    records : Records
        With the key `KEY`.
    folder : Path
        Trained weights and pruned layers are kept in it.
    say : callable
        Told what is done.
    """
    of_seed = cache(lambda seed: fewer(data.load(config.data, seed), config.samples))
    for part in config.parts:
        for (dropout, penalty), seed in product(part.pairs, config.seeds):
            about: dict[str, Any] = {"network": part.network, "dropout": dropout, "penalty": penalty, "seed": seed}
            about["recipe"] = config.recipe(part)
            epsilons = part.epsilons if (dropout, penalty) == (0.0, 0.0) else part.further
            wanted = [("trained", 0.0), *(("Net-Trim", epsilon) for epsilon in epsilons)]
            left = [key for key in wanted if records.find(**about, method=key[0], epsilon=key[1]) is None]
            if not left:
                continue
            samples, name = of_seed(seed), f"{part.network}, seed {seed}, {hashed({**about, 'part': 'regularised'})}"
            model = cleared(_trained(config, part, dropout, penalty, samples, seed, folder / f"{name}.safetensors"))
            for method, epsilon in left:
                made = copy.deepcopy(model)
                if method == "Net-Trim":
                    made = trim(model, samples, seed, Trim(epsilon, part.calibration), folder / name).model
                row = _measured(config, made, samples, seed)
                records.add(**about, method=method, epsilon=epsilon, **row)
                say(
                    f"{part.network}, Dropout {dropout:g}, l1 {penalty:g}, seed {seed}, {method} {epsilon:g}: "
                    f"{row['zeros']:.1%} zeros, {row['accuracy']:.2%}, tuned {row['tuned']:.2%}"
                )


def cleared(model: nn.Module) -> nn.Module:
    """The model, in which weights smaller than `THRESHOLD` have been set to zero."""
    with torch.no_grad():
        for W in layers_of(model).values():
            W.masked_fill_(W.abs() < THRESHOLD, 0.0)
    return model


def _trained(
    config: Config, part: Part, dropout: float, penalty: float, samples: data.DataSet, seed: int, path: Path
) -> nn.Module:
    """Trained by Adam at a rate that decays to zero, the penalty times the l1 norm added; from its file if there."""
    torch.manual_seed(seed)

    def train(model: nn.Module) -> None:
        batches = training.Batches(*samples.train, seed=seed)
        weights = [p for p in model.parameters() if p.ndim >= 2]
        optimizer = torch.optim.Adam(model.parameters(), config.rate)
        training.descend(
            *(model, batches, config.epochs, optimizer),
            penalty=(lambda: penalty * torch.stack([p.abs().sum() for p in weights]).sum()) if penalty else None,
            schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * len(batches)),
        )

    return remembered(path, _BUILDERS[part.network](dropout), train)


def _measured(config: Config, model: nn.Module, samples: data.DataSet, seed: int) -> dict[str, float]:
    """Zeros, and the test accuracy before and after fine-tuning."""
    images, labels = (part[: config.images] for part in samples.test)
    row = {"zeros": sparsity(model), "accuracy": training.accuracy(model, images, labels)}
    tune(model, samples, config.tuning, seed)
    return row | {"tuned": training.accuracy(model, images, labels)}

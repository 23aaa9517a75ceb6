"""Net-Trim against what prunes during training: Figure 9 of Aghasi et al. (2020).

Dynamic network surgery (`surgery`) learns a mask with the weights; sparse variational dropout (`variational`), in the
place of the paper's Bayesian compression, a variance for each weight. Both begin with the trained network. Net-Trim
prunes the same network, and what is left is trained for as many epochs on the same samples. Each method has one knob.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nettrim.studies import data, training
from nettrim.studies.networks import Case, accuracies, hashed, named
from nettrim.studies.records import Records
from nettrim.studies.rivals_report import plot, tables
from nettrim.studies.surgery import train_with_surgery
from nettrim.studies.trimming import FC, LENET, Trim, fewer, of_seeds, sparsity, trim, tune, zeros
from nettrim.studies.variational import train_with_noise

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("case", "method", "setting", "seed", "recipe")


@dataclass(frozen=True)
class Config:
    """Networks and knobs.

    Attributes
    ----------
    cases : tuple of Case
        Their `calibration` counts, their runs do not.
    epsilons : tuple of float
        Net-Trim's.
    deviations : tuple of float
        Of dynamic network surgery: above the mean of the weights' sizes.
    strengths : tuple of float
        Of sparse variational dropout: times the divergence.
    epochs : int
        Of the rivals' training, and of fine-tuning after Net-Trim.
    rate : float
        Of the rivals' training.
    samples : int, optional
        Training samples of both; default all.
    seeds : tuple of int
    """

    cases: tuple[Case, ...]
    epsilons: tuple[float, ...]
    deviations: tuple[float, ...]
    strengths: tuple[float, ...]
    epochs: int = 4
    rate: float = 1e-3
    samples: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    def recipe(self, case: Case) -> str:
        """A short name for what makes a record of a case, but for what its key says."""
        made = {**case.training, "calibration": case.calibration, "epochs": self.epochs}
        return hashed({**made, "tuning_rate": self.rate, "samples": self.samples})


PRESETS = {
    "smoke": Config((Case("fc, small", "synthetic_images", 2, 100, ()),), (0.2,), (1.0,), (1.0,), 1, seeds=(0, 1)),
    "cpu": Config((FC, LENET), (0.1, 0.4), (1.0, 2.5), (0.3, 1.0), 3, samples=10_000),
    "paper": Config(
        (Case("fc, no dropout", "mnist", 20, 55_000, ()), Case("lenet, 32-64-512", "mnist", 20, 10_000, ())),
        (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        tuple(0.25 * k for k in range(17)),
        *(tuple(0.05 * 1.5**k for k in range(12)), 60),
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
    wanted = [
        *(("Net-Trim", epsilon) for epsilon in config.epsilons),
        *(("surgery", c) for c in config.deviations),
        *(("variational dropout", strength) for strength in config.strengths),
    ]
    for case in config.cases:
        of_seed = of_seeds(case, folder, say)
        for (method, setting), seed in product(wanted, config.seeds):
            about: dict[str, Any] = {"case": case.name, "method": method, "setting": setting, "seed": seed}
            about["recipe"] = config.recipe(case)
            if records.find(**about) is not None:
                continue
            samples, model = of_seed(seed)
            dense = accuracies(model, samples)
            row = _made(config, case, samples, model, method, setting, seed, folder)
            parameters = sum(p.numel() for p in model.parameters())
            records.add(**about, parameters=parameters, dense=dense, **row)
            say(
                f"{case.name}, seed {seed}, {method}, {setting:g}: {row['zeros']:.1%} zeros, "
                f"{row['accuracy']['test']:.2%} (dense {dense['test']:.2%}), {row['seconds']:.0f} s"
            )


def _made(
    config: Config,
    case: Case,
    samples: data.DataSet,
    model: nn.Module,
    method: str,
    setting: float,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """One pruned network: zeros, accuracy, and what was trained beside the network's own parameters."""
    some = fewer(samples, config.samples)
    batches = training.Batches(*some.train, seed=seed)
    began = time.perf_counter()
    about: dict[str, Any] = {"extra": 0}
    if method == "Net-Trim":
        made: nn.Module = trim(model, samples, seed, Trim(setting, case.calibration), folder / named(case, seed)).model
        tune(made, some, config.epochs, seed)
    elif method == "surgery":
        made, about = train_with_surgery(model, batches, setting, config.epochs, config.rate, seed)
    else:
        torch.manual_seed(seed)
        made, about = train_with_noise(cast(nn.Sequential, model), batches, setting, config.epochs, config.rate)
    seconds = time.perf_counter() - began
    return {
        **{"zeros": sparsity(made), "layers": zeros(made), "accuracy": accuracies(made, samples)},
        **about,
        "seconds": seconds,
    }

"""Accuracy against noise on the inputs, of networks before and after pruning.

Aghasi et al. (2020) say of sparse networks that they are more stable when there is noise in the input, and show it in a
supplement. Here Gaussian noise is added to the test images, the same for all networks: the trained one, Net-Trim's for
several errors, and the trained one truncated to as many weights in each layer; the pruned ones also after fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nettrim.studies import data, training
from nettrim.studies.networks import Case, hashed, named, trained
from nettrim.studies.records import Records
from nettrim.studies.robustness_report import plot, tables
from nettrim.studies.trimming import FC, LENET, Trim, fewer, sparsity, trim, truncate, tune

__all__ = ["KEY", "PRESETS", "Config", "noisy", "plot", "run", "tables"]

#: what tells records apart
KEY = ("case", "method", "epsilon", "seed", "recipe")


@dataclass(frozen=True)
class Config:
    """Networks and noise.

    Attributes
    ----------
    cases : tuple of Case
        Their `calibration` counts, their runs do not.
    epsilons : tuple of float
    noises : tuple of float
        Standard deviations, of pixels that are scaled as the data set has them.
    epochs : int
        Of fine-tuning.
    tuning : int, optional
        Training samples that it uses; default all.
    images : int, optional
        The first so many test images, which noise is added to; default all.
    seeds : tuple of int
    """

    cases: tuple[Case, ...]
    epsilons: tuple[float, ...]
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
    epochs: int = 1
    tuning: int | None = None
    images: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    def recipe(self, case: Case) -> str:
        """A short name for what makes a record of a case, but for what its key says."""
        made = {**case.training, "calibration": case.calibration, "noises": self.noises}
        return hashed({**made, "epochs": self.epochs, "tuning": self.tuning, "images": self.images})


PRESETS = {
    "smoke": Config((Case("fc, small", "synthetic_images", 2, 100, ()),), (0.2,), (0.0, 1.0), seeds=(0, 1)),
    "cpu": Config((FC, LENET), (0.2,), (0.0, 0.2, 0.4, 0.6), tuning=10_000, images=5000),
    "paper": Config(
        (Case("fc, no dropout", "mnist", 20, 55_000, ()), Case("lenet, 32-64-512", "mnist", 20, 10_000, ())),
        *((0.02, 0.06, 0.1, 0.2, 0.4), (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), 30),
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
    for seed in config.seeds:
        for case in config.cases:
            about = {"case": case.name, "seed": seed, "recipe": config.recipe(case)}
            wanted = [("dense", 0.0)] + [(method, e) for e in config.epsilons for method in ("Net-Trim", "magnitude")]
            left = [key for key in wanted if records.find(**about, method=key[0], epsilon=key[1]) is None]
            if not left:
                continue
            samples = data.load(case.data, seed)
            model = trained(case, samples, seed, folder, say)
            for method, epsilon in left:
                rows = list(_networks(config, case, samples, model, method, epsilon, seed, folder))
                records.add(**about, method=method, epsilon=epsilon, rows=rows)
                worst = rows[-1]["accuracy"][-1]
                say(f"{case.name}, seed {seed}, {method}, epsilon {epsilon:g}: {worst:.2%} in the strongest noise")


def noisy(inputs: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """Inputs with independent Gaussian noise, float32, not clipped; the same noise up to the deviation for a seed."""
    noise = np.random.default_rng(seed).standard_normal(inputs.shape, dtype=np.float32)
    return inputs + np.float32(deviation) * noise


def _networks(
    config: Config,
    case: Case,
    samples: data.DataSet,
    model: nn.Module,
    method: str,
    epsilon: float,
    seed: int,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """What is measured of a network, and of the same after fine-tuning."""
    made = model
    if method != "dense":
        made = trim(model, samples, seed, Trim(epsilon, case.calibration), folder / named(case, seed)).model
    if method == "magnitude":
        made = truncate(model, made)
    for tuned in (False, True) if method != "dense" and config.epochs else (False,):
        if tuned:
            tune(made, fewer(samples, config.tuning), config.epochs, seed)
        images, labels = (part[: config.images] for part in samples.test)
        found = [training.accuracy(made, noisy(images, noise, seed), labels) for noise in config.noises]
        yield {"tuned": tuned, "zeros": sparsity(made), "noises": list(config.noises), "accuracy": found}

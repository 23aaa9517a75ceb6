"""Which inputs pruning drops: Figure 8 of Aghasi et al. (2020), beside how much ink each pixel has.

The first layer of the fully connected network is pruned by Net-Trim, plain and reweighted, and truncated to as many
weights (HPTD). An input is dropped if none of its weights is left. Pixels that are blank in all calibration samples
cost nothing to drop, and l1 drops them for certain; so those are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nettrim.studies import data
from nettrim.studies.dropped_inputs_report import plot, tables
from nettrim.studies.networks import Case, accuracies, hashed, named, trained
from nettrim.studies.records import Records
from nettrim.studies.trimming import FC, Trim, calibration_of, described, fewer, layers_of, trim, truncate, tune, zeros

__all__ = ["KEY", "PRESETS", "Config", "dropped", "plot", "run", "separation", "tables"]

#: what tells records apart
KEY = ("method", "epsilon", "seed", "recipe")

_ROUNDS = {"plain": 1, "reweighted": 4}


@dataclass(frozen=True)
class Config:
    """The network, errors and training.

    Attributes
    ----------
    case : Case
        A fully connected network on images; its `calibration` counts, its runs do not.
    epsilons : tuple of float
    epochs : int
        Of fine-tuning after the truncation: the figure's has a single step of it.
    tuning : int, optional
        Training samples that it uses; default all.
    seeds : tuple of int
    """

    case: Case
    epsilons: tuple[float, ...]
    epochs: int = 1
    tuning: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def recipe(self) -> str:
        """A short name for what makes a record, but for what its key says."""
        made = {**self.case.training, "calibration": self.case.calibration}
        return hashed({**made, "epochs": self.epochs, "tuning": self.tuning})


PRESETS = {
    "smoke": Config(Case("fc, small", "synthetic_images", 2, 100, ()), (0.3,), seeds=(0, 1)),
    "cpu": Config(FC, (0.1, 0.3), tuning=20_000),
    "paper": Config(
        Case("fc, no dropout", "mnist", 20, 55_000, ()), (0.02, 0.06, 0.1, 0.2, 0.4), seeds=tuple(range(10))
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
    case = config.case
    for seed in config.seeds:
        about = {"seed": seed, "recipe": config.recipe}
        wanted = [("pixels", 0.0)] + [(m, e) for e in config.epsilons for m in (*_ROUNDS, "magnitude")]
        left = [key for key in wanted if records.find(**about, method=key[0], epsilon=key[1]) is None]
        if not left:
            continue
        samples = data.load(case.data, seed)
        model = trained(case, samples, seed, folder, say)
        for method, epsilon in left:
            if method == "pixels":
                row = _pixels(samples, seed, case.calibration) | {"accuracy": accuracies(model, samples)}
            else:
                row = _pruned(config, samples, model, method, epsilon, seed, folder)
                say(f"seed {seed}, {method}, epsilon {epsilon:g}: {len(row['dropped'])} inputs dropped")
            records.add(method=method, epsilon=epsilon, **about, **row)


def dropped(weight: np.ndarray) -> np.ndarray:
    """Indices of the inputs of which no weight (outputs, inputs) is left."""
    return np.flatnonzero(~weight.any(axis=0))


def separation(ink: np.ndarray, gone: np.ndarray) -> float | None:
    """Probability that a dropped pixel has less ink than one that is read, ties counting half; None without either.

    Parameters
    ----------
    ink : (pixels,) array
    gone : int array
        Indices of the dropped ones.
    """
    is_gone = np.zeros(len(ink), bool)
    is_gone[gone] = True
    a, b = ink[is_gone], ink[~is_gone]
    if not len(a) or not len(b):
        return None
    less, equal = (a[:, None] < b).mean(), (a[:, None] == b).mean()
    return float(less + 0.5 * equal)


def _pixels(samples: data.DataSet, seed: int, count: int) -> dict[str, Any]:
    """How many training images have ink at each pixel, and which are blank in all calibration samples."""
    blank = ~calibration_of(samples, seed, count).reshape(count, -1).any(axis=0)
    return {"shape": list(samples.train[0].shape[-2:]), "ink": _ink(samples), "blank": np.flatnonzero(blank).tolist()}


def _ink(samples: data.DataSet) -> list[float]:
    return [round(float(part), 5) for part in (samples.train[0] > 0).reshape(len(samples.train[0]), -1).mean(axis=0)]


def _pruned(
    config: Config, samples: data.DataSet, model: nn.Module, method: str, epsilon: float, seed: int, folder: Path
) -> dict[str, Any]:
    """The inputs that one method drops, and what it does to the network whose other layers stay."""
    case = config.case
    first = next(iter(layers_of(model)))
    how = Trim(epsilon, case.calibration, rounds=_ROUNDS.get(method, 1), targets=(first,))
    pruned = trim(model, samples, seed, how, folder / named(case, seed))
    made = pruned.model
    if method == "magnitude":
        made = truncate(model, made)
        tune(made, fewer(samples, config.tuning), config.epochs, seed)
    gone = dropped(layers_of(made)[first].numpy())
    about = described(pruned) if method != "magnitude" else {}
    return about | {
        "dropped": gone.tolist(),
        "separation": separation(np.array(_ink(samples)), gone),
        "layer": zeros(made)[first],
        "accuracy": accuracies(made, samples),
    }

"""Net-Trim against HPTD, Figures 6 and 7 of Aghasi et al. (2020).

HPTD (Han, Pool, Tran, Dally 2015) truncates the smallest weights of a trained network and trains those that are left.
Here it keeps in each layer as many as Net-Trim has kept there, and both are fine-tuned on the same batches. The curves
have the validation accuracies before and after every epoch of it, and test accuracies at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from nettrim.studies import data, training
from nettrim.studies.hptd_report import plot, tables
from nettrim.studies.networks import Case, accuracies, augment, hashed, named, trained
from nettrim.studies.records import Records
from nettrim.studies.trimming import FC, LENET, RATE, Trim, described, fewer, sparsity, trim, truncate, tune, zeros

__all__ = ["KEY", "PRESETS", "Config", "Part", "plot", "run", "tables"]

#: what tells records apart
KEY = ("case", "samples", "epsilon", "method", "seed", "recipe")

METHODS = ("Net-Trim", "HPTD")


@dataclass(frozen=True)
class Part:
    """A network and what is done with it.

    Attributes
    ----------
    case : Case
        Its `calibration` and runs do not count.
    samples : tuple of int
        Training samples that the programs are made of.
    epsilons : tuple of float
    epochs : int
        Of fine-tuning.
    tuning : int, optional
        Training samples that it uses; default all.
    rate : float
        Of its steps.
    """

    case: Case
    samples: tuple[int, ...]
    epsilons: tuple[float, ...]
    epochs: int = 3
    tuning: int | None = None
    rate: float = RATE

    @property
    def recipe(self) -> str:
        """A short name for what makes a record, but for what its key says."""
        made = {**self.case.training, "epochs": self.epochs, "tuning": self.tuning}
        return hashed(made if self.rate == RATE else {**made, "rate": self.rate})


@dataclass(frozen=True)
class Config:
    """Networks and seeds."""

    parts: tuple[Part, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


_PUBLISHED = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
PRESETS = {
    "smoke": Config(
        (
            Part(Case("fc, small", "synthetic_images", 2, 0, ()), (100,), (0.1, 0.3), 1),
            Part(Case("convnet, width 2", "synthetic_colours", 1, 0, ()), (20,), (0.2,), 1),
        ),
        (0, 1),
    ),
    "cpu": Config(
        (
            Part(FC, (FC.calibration,), (0.4, 0.2, 0.1), 2, 10_000),
            Part(LENET, (LENET.calibration,), (0.4, 0.2, 0.1), 2, 10_000),
        )
    ),
    "cifar": Config((Part(Case("convnet, width 16", "cifar10", 8, 0, ()), (300,), (0.2, 0.05), 2, 10_000, 1e-3),)),
    "paper": Config(
        (
            Part(Case("fc, no dropout", "mnist", 20, 0, ()), (55_000,), _PUBLISHED, 30),
            Part(Case("lenet, 32-64-512", "mnist", 20, 0, ()), (55_000,), _PUBLISHED, 30),
            Part(Case("convnet", "cifar10", 140, 0, (), augment=True), (25_000, 45_000), _PUBLISHED, 30),
        ),
        tuple(range(10)),
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
    for part in config.parts:
        for seed in config.seeds:
            about = {"case": part.case.name, "seed": seed, "recipe": part.recipe}
            grid = product(part.samples, part.epsilons, METHODS)
            wanted: list[dict[str, Any]] = [{"samples": n, "epsilon": e, "method": m} for n, e, m in grid]
            left = [key for key in wanted if records.find(**about, **key) is None]
            if not left:
                continue
            samples = data.load(part.case.data, seed)
            model = trained(part.case, samples, seed, folder, say)
            dense = accuracies(model, samples)
            for key in left:
                how = Trim(key["epsilon"], key["samples"])
                pruned = trim(model, samples, seed, how, folder / named(part.case, seed))
                made, row = pruned.model, described(pruned)
                if key["method"] == "HPTD":
                    made = truncate(model, made)
                    row = {"zeros": sparsity(made), "layers": zeros(made)}
                row |= _tuned(part, made, samples, seed)
                records.add(**about, **key, dense=dense, **row)
                say(
                    f"{part.case.name}, seed {seed}, {key['method']}, epsilon {key['epsilon']:g}: {row['zeros']:.1%} "
                    f"zeros, {row['test'][0]:.2%}, tuned {row['test'][1]:.2%} (dense {dense['test']:.2%})"
                )


def _tuned(part: Part, model: nn.Module, samples: data.DataSet, seed: int) -> dict[str, list[float]]:
    """Fine-tune: validation accuracies before and after each epoch, test accuracies at the beginning and the end."""
    validation = [training.accuracy(model, *samples.validation)]
    test = [training.accuracy(model, *samples.test)]
    tune(
        *(model, fewer(samples, part.tuning), part.epochs, seed, augment(part.case)),
        progress=lambda epoch, loss: validation.append(training.accuracy(model, *samples.validation)),
        rate=part.rate,
    )
    return {"validation": validation, "test": [*test, training.accuracy(model, *samples.test)]}

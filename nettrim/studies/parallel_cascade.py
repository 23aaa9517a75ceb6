"""Parallel and cascade Net-Trim on few and on many samples: Figure 3 of Aghasi et al. (2020).

A trained network is pruned layer by layer on subsets of its training samples. For each pruning: the zeros of every
layer, the relative total discrepancy, which is the distance of the network's outputs from the unpruned ones over their
norm, on the samples it was pruned with and on validation samples, and the test accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nettrim.studies import training
from nettrim.studies.networks import Case, hashed, named
from nettrim.studies.parallel_cascade_report import plot, tables
from nettrim.studies.records import Records
from nettrim.studies.trimming import FC, Trim, calibration_of, described, of_seeds, trim

__all__ = ["KEY", "PRESETS", "Config", "discrepancy", "plot", "run", "tables"]

#: what tells records apart
KEY = ("scheme", "samples", "subset", "epsilon", "seed", "recipe")


@dataclass(frozen=True)
class Config:
    """The network, and what it is pruned on.

    Attributes
    ----------
    case : Case
        Its `calibration` and runs do not count.
    samples : tuple of int
    subsets : tuple of int
        Realisations for each of these numbers of samples, and for each seed.
    epsilons : tuple of float
        Error of a layer over its outputs; in the cascade scheme of the first.
    schemes : tuple of str
    seeds : tuple of int
        Of the trained networks; each has subsets of its own.
    """

    case: Case
    samples: tuple[int, ...]
    subsets: tuple[int, ...]
    epsilons: tuple[float, ...]
    schemes: tuple[str, ...] = ("parallel", "cascade")
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def recipe(self) -> str:
        """A short name for what makes a record, but for what its key says."""
        return hashed(self.case.training)

    def trims(self) -> Iterator[Trim]:
        """Each pruning: all numbers of samples once, then further subsets, so that a part of them says something."""
        for subset in range(max(self.subsets)):
            for samples, count in zip(self.samples, self.subsets, strict=True):
                if subset < count:
                    for epsilon in self.epsilons:
                        for scheme in self.schemes:
                            yield Trim(epsilon, samples, scheme, subset)


PRESETS = {
    "smoke": Config(Case("fc, small", "synthetic_images", 2, 0, ()), (60, 120), (2, 1), (0.1, 0.3), seeds=(0,)),
    # the ends first, should it be stopped
    "cpu": Config(FC, (125, 1000, 250, 500), (2, 1, 2, 1), (0.4, 0.2, 0.1, 0.05)),
    "paper": Config(
        Case("fc, no dropout", "mnist", 20, 0, ()),
        *((10_000, 20_000, 30_000, 55_000), (10, 10, 10, 1)),
        (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
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
    case, made = config.case, of_seeds(config.case, folder, say)
    for how in config.trims():
        for seed in config.seeds:
            about = {"scheme": how.scheme, "samples": how.samples, "subset": how.subset, "epsilon": how.epsilon}
            about |= {"seed": seed, "recipe": config.recipe}
            if records.find(**about) is not None:
                continue
            samples, model = made(seed)
            pruned = trim(model, samples, seed, how, folder / named(case, seed))
            own = calibration_of(samples, seed, how.samples, how.subset)
            row = {
                **described(pruned),
                "discrepancy": {
                    "calibration": discrepancy(pruned.model, model, own),
                    "validation": discrepancy(pruned.model, model, samples.validation[0]),
                },
                "dense": training.accuracy(model, *samples.test),
                "accuracy": training.accuracy(pruned.model, *samples.test),
            }
            records.add(**about, **row)
            say(
                f"{how.scheme}, {how.samples} samples, epsilon {how.epsilon:g}, subset {how.subset}, seed {seed}: "
                f"{row['zeros']:.1%} zeros, discrepancy {row['discrepancy']['validation']:.3f}, {row['accuracy']:.2%}, "
                f"{row['prune_seconds']:.0f} s"
            )


def discrepancy(pruned: nn.Module, model: nn.Module, inputs: np.ndarray) -> float:
    """Relative total discrepancy: distance of a network's outputs from another's, over the norm of the latter."""
    before, after = (training.outputs(network, inputs).astype(np.float64) for network in (model, pruned))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))

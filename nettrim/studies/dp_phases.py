"""Which phase of training decides? SGD and DP-SGD in four orders (paper 002, section 4.1.1, Figures 2 and 20).

The first k epochs go by one process, the others by one. Where both phases go by the same one, k makes no difference,
and the training is done once. Only DP-SGD in both phases has an epsilon: a phase of SGD has no privacy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nettrim.privacy.accountant import epsilon
from nettrim.studies import data
from nettrim.studies.dp_phases_report import plot, tables
from nettrim.studies.dp_snapshots import restore, snapshots
from nettrim.studies.dp_training import DP, OTHER, SGD, Process, build, standing, steps_of, subset, train
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart; k is None where both phases go by the same process
KEY = ("first", "second", "k", "seed", "recipe")


@dataclass(frozen=True)
class Config:
    """Epochs, switches and processes.

    Attributes
    ----------
    epochs : int
        Of both phases together.
    switches : tuple of int
        The epochs k of the first phase, below `epochs`.
    data : str
        See `nettrim.studies.data.load`.
    samples : int, optional
        Training samples; default all.
    watched : int, optional
        Training and test samples that the curves are of, the first ones; the ends are on all.
    sgd, dp : Process
    delta : float
    seeds : tuple of int
    device : str
    """

    epochs: int
    switches: tuple[int, ...]
    data: str = "mnist"
    samples: int | None = None
    watched: int | None = None
    sgd: Process = SGD
    dp: Process = DP
    delta: float = 1e-5
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"

    @property
    def recipe(self) -> str:
        """A short name for what makes a training."""
        left_out = ("seeds", "device", "switches", "delta")
        return hashed({k: v for k, v in asdict(self).items() if k not in left_out})


_SMALL = Process("SGD", 64, 0.1), Process("DP-SGD", 100, 0.5, DP.mechanism)
PRESETS = {
    "smoke": Config(3, (1, 2), "synthetic_images", None, 100, *_SMALL, seeds=(0, 1)),
    "cpu": Config(10, (1, 2, 5, 8), samples=11_000, watched=2000),
    "paper": Config(30, (3, 5, 15, 25), device="auto"),
    # a first phase of 50 epochs needs more than 30 in all; the paper does not say how many
    "long": Config(80, (50,), device="auto"),
}


def run(config: Config, records: Records, folder: Path, say: Callable[[str], Any] = print) -> None:
    """Do what is not in the records yet.

    Parameters
    ----------
    config : Config
    records : Records
        With the key `KEY`.
    folder : Path
        Weights after the first phases are kept in it.
    say : callable
        Told what is done.
    """
    for seed in config.seeds:
        about: dict[str, Any] = {"seed": seed, "recipe": config.recipe}
        pairs = ((config.sgd, config.dp), (config.dp, config.sgd))
        left = {
            first.name: [k for k in config.switches if _missing(records, first, second, k, about)]
            for first, second in pairs
        }
        alone = {first.name: _missing(records, first, first, None, about) for first, _ in pairs}
        if not any(left.values()) and not any(alone.values()):
            continue
        samples = subset(config.data, seed, config.samples)
        for first, second in pairs:
            if alone[first.name] or left[first.name]:
                began, seen = time.perf_counter(), _Curve(config, samples)
                paths = snapshots(
                    *(folder, config.recipe, first, samples, config.epochs, config.switches, seed, config.device),
                    progress=seen if alone[first.name] else None,
                )
                if alone[first.name]:
                    steps = steps_of(first, samples.train, config.epochs)
                    found = _record(seen, first, first, steps, began)
                    records.add(first=first.name, second=first.name, k=None, **about, **found)
                    say(f"{first.name}, seed {seed}: {found['end']['accuracy']:.2%} in {found['seconds']:.1f} s")
            for k in left[first.name]:
                began, seen = time.perf_counter(), _Curve(config, samples, k)
                model = restore(build(seed, config.device), paths[k])
                steps = train(
                    *(model, second, samples.train, config.epochs - k, seed + OTHER * k),
                    progress=partial(seen, model),
                )
                found = _record(seen, first, second, steps, began)
                records.add(first=first.name, second=second.name, k=k, **about, **found)
                said = f"{found['end']['accuracy']:.2%} in {found['seconds']:.1f} s"
                say(f"{first.name} for {k} epochs, then {second.name}, seed {seed}: {said}")


def _missing(records: Records, first: Process, second: Process, k: int | None, about: dict[str, Any]) -> bool:
    return records.find(first=first.name, second=second.name, k=k, **about) is None


@dataclass
class _Curve:
    """Called after each epoch, counted from `done`: how the model stands. Keeps the last model."""

    config: Config
    samples: data.DataSet
    done: int = 0

    def __post_init__(self) -> None:
        self.points: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, epoch: int) -> None:
        self.model = model
        self.points.append({"epoch": self.done + epoch, **standing(model, self.samples, self.config.watched)})


def _record(seen: _Curve, first: Process, second: Process, steps: int, began: float) -> dict[str, Any]:
    config, end = seen.config, standing(seen.model, seen.samples)
    found = {
        "curve": seen.points,
        "end": end,
        "epochs": config.epochs,
        "steps": steps,
        "epsilon": None,
        "privacy": None,
    }
    if first.name == second.name == "DP-SGD":
        rate = config.dp.size / len(seen.samples.train[0])
        spent = epsilon(steps, rate, config.dp.mechanism.sigma, config.delta)
        found |= {"epsilon": spent.epsilon, "privacy": str(spent)}
    return {**found, "seconds": time.perf_counter() - began}

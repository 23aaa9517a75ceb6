"""When are pruning bounds useful? Coresets of last layers, their guarantees, and what is then true (paper 001).

Networks are trained to be easy, moderately easy or difficult to prune (`nettrim.studies.coreset_networks`); each part
of the study is a function of the trained network (`nettrim.studies.coreset_parts`). On the CPU, VGG-16 is replaced by
frozen features of CIFAR-10 with one hidden layer of 1000 and a head of 10, so that the pruned layers have the sizes of
the paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nettrim.studies import training
from nettrim.studies.coreset_networks import Case, load, trained
from nettrim.studies.coreset_parts import PARTS
from nettrim.studies.coreset_tables import tables
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("network", "case", "seed", "part", "recipe")


@dataclass(frozen=True)
class Config:
    """Cases and seeds.

    Attributes
    ----------
    cases : tuple of Case
    epochs : int
        Of fine-tuning and distillation.
    seeds : tuple of int
    device : str
        Where networks are trained; "auto" is a GPU if there is one.
    """

    cases: tuple[Case, ...]
    epochs: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"


_BOTH = ("weights", "neurons")
_LENET = (
    Case("difficult", parts=(*_BOTH, "sparsity", "tuning", "distillation", "ball", "scaling")),
    Case("moderate", penalty=1e-4, parts=(*_BOTH, "sparsity")),
    Case("moderate, l1 of 0.001", penalty=1e-3),
    Case("easy", easy="weights", left=0.05, parts=("weights",)),
    Case("easy", easy="neurons", left=0.1, parts=("neurons",)),
    Case("dropout 0.2", dropout=0.2, parts=("neurons",)),
    Case("dropout 0.5", dropout=0.5, parts=("neurons",)),
)


def _larger(network: str, data: str, **how: Any) -> tuple[Case, ...]:
    """The cases of the layer of 1000 neurons."""
    base = Case("difficult", network, data, **how)
    return (
        base,
        replace(base, name="moderate", penalty=1e-4),
        replace(base, name="easy", easy="weights", left=0.01, parts=("weights",)),
        replace(base, name="easy", easy="neurons", left=0.01, parts=("neurons",)),
    )


_SMOKE = Case("difficult", "small", "rectified synthetic_images", tuple(PARTS), epochs=2)
PRESETS = {
    "smoke": Config(
        (
            _SMOKE,
            replace(_SMOKE, name="easy", easy="weights", left=0.2, parts=("weights",)),
            replace(_SMOKE, name="easy", easy="neurons", left=0.5, parts=("neurons",)),
        ),
        epochs=1,
        seeds=(0, 1),
    ),
    "cpu": Config((*_LENET, *_larger("frozen features", "features of cifar10", strength=0.003, seeds=1))),
    "paper": Config(
        (*_LENET, *_larger("VGG-16", "cifar10", epochs=15, rate=1e-3, momentum=0.9, size=32, strength=0.003)),
        epochs=10,
        device="auto",
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
        Trained weights are kept in it.
    say : callable
        Told what is done.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    for case in config.cases:
        for seed in config.seeds[: case.seeds]:
            about = {"network": case.network, "case": case.name, "seed": seed}
            recipe = f"{case.recipe}-{config.epochs}"
            left = [part for part in case.parts if records.find(**about, part=part, recipe=recipe) is None]
            if not left:
                continue
            samples = load(case.data, seed)
            model = trained(case, samples, seed, folder, say, device)
            for part in left:
                began = time.perf_counter()
                rows = PARTS[part](model, samples, seed, config.epochs)
                seconds = time.perf_counter() - began
                accuracy = training.accuracy(model, *samples.validation)
                records.add(**about, part=part, recipe=recipe, accuracy=accuracy, seconds=seconds, rows=rows)
                say(f"{case.network}, {case.name}, seed {seed}: {part} in {seconds:.1f} s")


def plot(records: Records, folder: Path) -> list[Path]:
    """Figures 3, 6, 8, 11 and 12, as PNG files in a folder; their paths."""
    from nettrim.studies.coreset_plots import draw

    return draw(records, folder)

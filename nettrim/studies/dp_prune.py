"""Pruning before DP-SGD (paper 002, section 4.2, Figures 12 to 15, 18 and 19).

A network is trained without privacy from some initial values, pruned by magnitude in each layer, its kept weights are
reset to the initial values, and DP-SGD trains what is left. The mask comes from the full data, from a share of them,
from another data set, or from nothing (random). The first two are masks learned on private data, of which epsilon says
nothing. Everything is labelled by the fraction of weights that is KEPT; the paper's "level p" is that fraction in its
definition, and the fraction pruned in the rest of its text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.privacy.accountant import epsilon
from nettrim.studies import data
from nettrim.studies.dp_prune_report import plot, tables
from nettrim.studies.dp_snapshots import restore, snapshots
from nettrim.studies.dp_training import (
    DP,
    OTHER,
    SGD,
    Process,
    build,
    clipping_of,
    magnitude_masks,
    standing,
    subset,
    train,
)
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "handwritten", "plot", "run", "tables"]

#: what tells records apart; kept is 1 for the dense network, whose source is "none"
KEY = ("source", "kept", "seed", "recipe")

#: sources of masks that look at the data that DP-SGD is then trained on
_PRIVATE = ("full data", "share")
#: added to a seed for the random mask
_RANDOM = 2
#: the sigma with which the paper's epsilon is about 1, by its account
_PRIVATELY = replace(DP, mechanism=replace(DP.mechanism, sigma=2.4))


@dataclass(frozen=True)
class Config:
    """Masks and training.

    Attributes
    ----------
    kept : tuple of float
        Fractions of the weights of each layer that stay; biases stay all.
    sources : tuple of str
        Of masks: "full data", "share", "digits" (scikit-learn's), "random".
    share : float
        Fraction of the training samples of the source "share".
    before : int
        Epochs of SGD before pruning.
    epochs : int
        Of DP-SGD.
    data : str
        See `nettrim.studies.data.load`.
    samples : int, optional
        Training samples; default all.
    measured : int
        Samples whose per-example gradients R and the cosine are of, at the start of DP-SGD.
    sgd, dp : Process
    delta : float
    seeds : tuple of int
    device : str
    """

    kept: tuple[float, ...] = (0.7, 0.5, 0.3, 0.1, 0.05)
    sources: tuple[str, ...] = ("full data", "share", "digits", "random")
    share: float = 0.05
    before: int = 20
    epochs: int = 30
    data: str = "mnist"
    samples: int | None = None
    measured: int = 2000
    sgd: Process = SGD
    dp: Process = _PRIVATELY
    delta: float = 1e-5
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"

    @property
    def recipe(self) -> str:
        """A short name for what makes a training."""
        left_out = ("seeds", "device", "kept", "sources", "delta")
        return hashed({k: v for k, v in asdict(self).items() if k not in left_out})


PRESETS = {
    "smoke": Config(
        *((0.3,), ("full data", "share", "digits", "random"), 0.2, 1, 1, "synthetic_images", None, 60),
        sgd=replace(SGD, size=64),
        dp=Process("DP-SGD", 100, 0.5, DP.mechanism),
        seeds=(0, 1),
    ),
    "cpu": Config(kept=(0.3, 0.1), before=8, epochs=3, samples=20_000, measured=1000),
    "paper": Config(device="auto"),
}


def run(config: Config, records: Records, folder: Path, say: Callable[[str], Any] = print) -> None:
    """Do what is not in the records yet.

    Parameters
    ----------
    config : Config
    records : Records
        With the key `KEY`.
    folder : Path
        Weights before and after the training that masks are made of are kept in it.
    say : callable
        Told what is done.
    """
    for seed in config.seeds:
        about: dict[str, Any] = {"seed": seed, "recipe": config.recipe}
        wanted = [("none", 1.0), *((source, kept) for source in config.sources for kept in config.kept)]
        left = [(source, kept) for source, kept in wanted if records.find(source=source, kept=kept, **about) is None]
        if not left:
            continue
        samples = subset(config.data, seed, config.samples)
        for source, kept in left:
            masks, model = {}, build(seed, config.device)
            if source == "random":
                masks = magnitude_masks(model, kept, seed + _RANDOM)
            elif source != "none":
                masks = magnitude_masks(_trained(config, samples, source, seed, folder), kept)
            began = time.perf_counter()
            # the kept weights are at their initial values, and those that are pruned at zero, as training begins
            for name, p in model.named_parameters():
                if name in masks:
                    p.data.mul_(p.data.new_tensor(masks[name]))
            clipping = clipping_of(model, _first(samples.train, config.measured), config.dp.mechanism.C, masks)
            steps = train(model, config.dp, samples.train, config.epochs, seed + OTHER, masks)
            rate = config.dp.size / len(samples.train[0])
            spent = epsilon(steps, rate, config.dp.mechanism.sigma, config.delta, source in _PRIVATE)
            end = standing(model, samples)
            records.add(
                **{"source": source, "kept": kept, **about, "share": config.share, "end": end},
                **{"weights": sum(int(mask.sum()) for mask in masks.values()) if masks else None},
                **{"R": clipping.R, "cosine": clipping.cosine, "clipped": clipping.clipped},
                **{"epsilon": spent.epsilon, "notice": spent.notice, "privacy": str(spent)},
                seconds=time.perf_counter() - began,
            )
            say(f"mask from {source}, {kept:.0%} kept, seed {seed}: {end['accuracy']:.2%} after DP-SGD; {spent}")


def _trained(config: Config, samples: data.DataSet, source: str, seed: int, folder: Path) -> Any:
    """LeNet-5 from the initial values of the seed, trained by SGD on the data of a source."""
    if source == "digits":
        samples = handwritten()
    elif source == "share":
        count = round(config.share * len(samples.train[0]))
        samples = replace(samples, train=_first(samples.train, count))
    elif source != "full data":
        raise ValueError(f"sources must be of full data, share, digits, random; got {source!r}")
    recipe = f"{config.recipe}, {source}"
    paths = snapshots(folder, recipe, config.sgd, samples, config.before, (config.before,), seed, config.device)
    return restore(build(seed, config.device), paths[config.before])


def _first(part: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    return part[0][:count], part[1][:count]


def handwritten() -> data.DataSet:
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels, enlarged to 24 x 24 in 28 x 28; all to train on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    large = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    x = np.pad(large, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32)
    both = x, labels.astype(np.int64)
    return data.DataSet("digits", both, both, both)

"""How far pruned layers and networks are from the dense ones, against the width: the laws, and trained layers.

Qian and Klabjan (2021) bound the error of random and of magnitude masks for layers of independent uniform weights.
Three parts look at what that says: "layer", square layers of such weights, whose error is known exactly; "network",
several of them with ReLUs between, whose error lies between two bounds; "initial" and "trained", the middle layer of
networks 784-d-d-10 before and after training, where the assumption is true and where it need not be. Each error of a
layer is also measured with the pruned weights put in random places ("shuffled"): the same values, without their
dependence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nettrim.bounds import laws
from nettrim.bounds.closeness import closeness, linear_distance
from nettrim.pruners.masks import magnitude_mask, random_mask
from nettrim.studies import data, models, training
from nettrim.studies.probabilistic_tables import tables
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("part", "width", "depth", "alpha", "mask", "seed", "recipe")

_MASKS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "magnitude": lambda W, alpha, seed: magnitude_mask(W, alpha),
    "random": random_mask,
}
_LAWS = {"magnitude": laws.magnitude_law, "random": laws.random_law}


@dataclass(frozen=True)
class Config:
    """Widths and exponents, and how networks are trained.

    Attributes
    ----------
    widths, deep_widths, trained_widths : tuple of int
        Of the layers, the networks, and the trained networks.
    depths : tuple of int
        Layers of the networks.
    alphas : tuple of float
        ``floor(D^(1 - alpha))`` of a layer's D weights are pruned.
    seeds : tuple of int
    data : str
        See `nettrim.studies.data.load`.
    epochs : int
        Of training.
    starts, iterations : int
        Of the search for the networks' worst input.
    """

    widths: tuple[int, ...]
    deep_widths: tuple[int, ...]
    trained_widths: tuple[int, ...]
    depths: tuple[int, ...] = (2, 3)
    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "mnist"
    epochs: int = 3
    starts: int = 32
    iterations: int = 200


PRESETS = {
    "smoke": Config((16, 32), (8, 16), (8, 16), (2,), (0.1, 0.3), (0, 1), "synthetic_images", 1, 4, 20),
    "cpu": Config(
        *((64, 128, 256, 512, 1024, 2048), (64, 128, 256, 512), (64, 128, 256, 512, 1024)),
        iterations=100,
    ),
    "paper": Config(
        (64, 128, 256, 512, 1024, 2048, 4096),
        *((64, 128, 256, 512, 1024), (64, 128, 256, 512, 1024, 2048), (2, 3, 4)),
        seeds=tuple(range(10)),
        epochs=20,
        iterations=1000,
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
        Not used: a network some of whose records are missing is trained again.
    say : callable
        Told what is done.
    """
    recipe = f"{config.starts} starts, {config.iterations} iterations"
    for seed in config.seeds:
        for width in config.widths:
            left = _left(config, records, "layer", width, 1, seed, "")
            for about in left:
                W = _uniform(width, seed, 0)
                records.add(**about, **_measured(W, about["alpha"], about["mask"], 1.0, seed))
            if left:
                say(f"layer, width {width}, seed {seed}")
        for depth in config.depths:
            for width in config.deep_widths:
                left = _left(config, records, "network", width, depth, seed, recipe)
                for about in left:
                    records.add(**about, **_bounded(config, width, depth, about["alpha"], about["mask"], seed))
                if left:
                    say(f"network of {depth} layers, width {width}, seed {seed}")
        for width in config.trained_widths:
            _compare(config, records, width, seed, say)


def plot(records: Records, folder: Path) -> list[Path]:
    """Figures of the three parts, as PNG files in a folder; their paths."""
    from nettrim.studies.probabilistic_plots import draw

    return draw(records, folder)


def _left(
    config: Config, records: Records, part: str, width: int, depth: int, seed: int, recipe: str
) -> list[dict[str, Any]]:
    """The keys of the records that are not there."""
    about = {"part": part, "width": width, "depth": depth, "seed": seed, "recipe": recipe}
    keys = [{**about, "alpha": alpha, "mask": mask} for alpha in config.alphas for mask in _MASKS]
    return [key for key in keys if records.find(**key) is None]


def _uniform(width: int, seed: int, layer: int) -> np.ndarray:
    return np.random.default_rng((seed, width, layer)).uniform(-1, 1, (width, width)) / np.sqrt(width)


def _measured(W: np.ndarray, alpha: float, mask: str, K: float, seed: int) -> dict[str, float]:
    """The error of one layer, beside what the law, the pruned weights' mean square and their shuffling give."""
    pruned = np.where(_MASKS[mask](W, alpha, seed), 0, W)
    # another stream than the mask's, whose zeros would fall into place otherwise
    shuffled = np.random.default_rng((seed, 1)).permutation(pruned.ravel()).reshape(W.shape)
    return {
        "K": K,
        "pruned": laws.pruned_fraction(W.size, alpha),
        "error": linear_distance(pruned, np.zeros_like(W)),
        "law": _LAWS[mask](W.shape, alpha, K),
        "iid": laws.iid_prediction(pruned),
        "shuffled": linear_distance(shuffled, np.zeros_like(W)),
    }


def _bounded(config: Config, width: int, depth: int, alpha: float, mask: str, seed: int) -> dict[str, float]:
    """Bounds on the error of a network of independent uniform layers."""
    weights = [_uniform(width, seed, layer) for layer in range(depth)]
    kept = [np.where(_MASKS[mask](W, alpha, seed + 1000 * k), W, 0) for k, W in enumerate(weights)]
    found = closeness(weights, kept, starts=config.starts, iterations=config.iterations, seed=seed)
    return {"lower": found.lower, "upper": found.upper}


def _compare(config: Config, records: Records, width: int, seed: int, say: Callable[[str], Any]) -> None:
    """Train a network and measure its middle layer, as it was initialised and as it is then."""
    recipe = f"{config.data}, {config.epochs} epochs"
    left = [a for part in ("initial", "trained") for a in _left(config, records, part, width, 3, seed, recipe)]
    if not left:
        return
    samples = data.load(config.data, seed)
    torch.manual_seed(seed)
    model = models.fully_connected((784, width, width, 10), dropout=0.0)
    layer = [module for module in model if isinstance(module, torch.nn.Linear)][1]
    before = layer.weight.detach().numpy().T.astype(np.float64)
    training.train(model, training.Batches(*samples.train, seed=seed), config.epochs)
    after = layer.weight.detach().numpy().T.astype(np.float64)
    moved = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    network = {"accuracy": training.accuracy(model, *samples.test), "moved": moved}
    layers = {"initial": (before, _described(before)), "trained": (after, _described(after))}
    for about in left:
        W, described = layers[about["part"]]
        K = float(np.abs(W).max() * np.sqrt(width))
        records.add(**about, **_measured(W, about["alpha"], about["mask"], K, seed), **described, **network)
    say(f"trained network, width {width}, seed {seed}: {network['accuracy']:.2%}")


def _described(W: np.ndarray) -> dict[str, float]:
    """How far weights are from independent uniform ones, whose excess kurtosis is -1.2."""
    deviation, norm = W - W.mean(), linear_distance(W, np.zeros_like(W))
    return {
        "kurtosis": float((deviation**4).mean() / (deviation**2).mean() ** 2 - 3),
        "norm": norm,
        "norm_iid": laws.iid_prediction(W),
    }

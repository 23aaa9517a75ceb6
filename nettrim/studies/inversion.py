"""What can be seen of an image behind a layer of LeNet-5, as the network is pruned in rounds (paper 000, section 5).

The network is pruned to ``k = .8^n`` of its weights. At the output of each of five layers, before its ReLU, attackers
look for test images:

- "grey": the paper's objective, from noise around grey;
- "public": the same, from the mean of those public images whose representations are nearest;
- "aware": as "public", with mismatches measured through the weights that the mask has left.

Public images, and those on which each attacker chooses its weight of the total variation, for every layer and every
network, are validation images; the images that are reported are test images. An attacker who does not beat the blank
and the mean image on the dense network says nothing of the pruned ones (`nettrim.privacy.images.gate`). The mean of
the nearest public images is measured too: it is found without any search.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.privacy import images as measures
from nettrim.privacy.inversion import Attack, choose_weight, invert, neighbours
from nettrim.privacy.iterative import Recipe, Round, iterative
from nettrim.privacy.layers import evaluation, passage, represent
from nettrim.report import write_atomically
from nettrim.studies import data, models, training
from nettrim.studies.inversion_tables import tables
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("part", "seed", "round", "layer", "attacker", "recipe")

#: the paper's names of the layers of `nettrim.studies.models.lenet5`
LAYERS = {"conv1": "0", "conv2": "3", "fc1": "7", "fc2": "9", "fc3": "11"}

#: images whose arrays are kept for the grids
_SHOWN = 4


@dataclass(frozen=True)
class Config:
    """How networks are trained and pruned, and how they are attacked.

    Attributes
    ----------
    recipe : Recipe
        Of training and pruning; its seed is replaced by each of `seeds`.
    rounds : tuple of int
        After which the network is attacked; 0 is the dense one, without which there is no gate.
    layers : tuple of str
    attackers : tuple of {"grey", "public", "aware"}
    images, tuning, public : int
        That are looked for, that weights are chosen on, and that the attackers have besides.
    weights : tuple of float
        Of the total variation, to choose from.
    iterations, restarts : int
        Of each attack.
    nearest : int
        Public images whose mean is the start.
    spread, spread_public : float
        Of the noise around grey, and around public images; in parts of the range of the pixels.
    data : str
        See `nettrim.studies.data.load`.
    seeds : tuple of int
    """

    recipe: Recipe = field(default_factory=Recipe)
    rounds: tuple[int, ...] = (0, 4, 10, 15)
    layers: tuple[str, ...] = tuple(LAYERS)
    attackers: tuple[str, ...] = ("grey", "public", "aware")
    images: int = 16
    tuning: int = 6
    public: int = 4000
    weights: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6)
    iterations: int = 300
    restarts: int = 2
    nearest: int = 10
    spread: float = 0.1
    spread_public: float = 0.02
    data: str = "mnist"
    seeds: tuple[int, ...] = (0,)


PRESETS = {
    "smoke": Config(
        Recipe(rounds=2, epochs=2, retrain=1, size=60),
        *((0, 2), ("conv1", "fc1")),
        images=4,
        tuning=2,
        public=40,
        weights=(1e-3, 1e-5),
        iterations=15,
        nearest=3,
        data="synthetic_images",
    ),
    "cpu": Config(),
    "paper": Config(
        images=64, tuning=16, weights=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), iterations=1000, restarts=8, seeds=(0, 1, 2)
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
        Keeps the networks of all rounds, the last epoch's, and the images that the grids show.
    say : callable
        Told what is done.
    """
    trained, attacked = _recipes(config)
    for seed in config.seeds:
        recipe = replace(config.recipe, seed=seed)
        keys = [_key("accuracy", seed, n, "", "", trained) for n in range(recipe.rounds + 1)]
        cells = [
            (n, layer, attacker) for n in config.rounds for layer in config.layers for attacker in config.attackers
        ]
        keys += [_key("inversion", seed, *cell, attacked) for cell in cells]
        if all(records.find(**key) for key in keys):
            continue
        samples = data.load(config.data, seed)
        torch.manual_seed(seed)
        model = models.lenet5()
        place = folder / f"LeNet-5 on {config.data}, seed {seed}, {trained}"
        for made in iterative(model, *samples.train, recipe, place):
            about = _key("accuracy", seed, made.number, "", "", trained)
            if records.find(**about) is None:
                right = training.accuracy(model, *samples.test)
                records.add(**about, kept=made.kept, weights=made.weights, accuracy=right)
                say(f"seed {seed}, {made.kept / made.weights:.1%} of the weights: {right:.2%} right")
            for layer, attacker in [cell[1:] for cell in cells if cell[0] == made.number]:
                about = _key("inversion", seed, made.number, layer, attacker, attacked)
                if records.find(**about) is None:
                    found = _attacked(config, samples, model, made, layer, attacker, seed)
                    shown = folder / f"{layer}, {attacker}, round {made.number:02d}, seed {seed}, {attacked}.npy"
                    with write_atomically(shown) as file:
                        np.save(file, found.pop("shown"), allow_pickle=False)
                    records.add(**about, **found, images=os.path.relpath(shown, records.path.parent))
                    say(f"  {layer}, {attacker}: {np.mean(found['psnr']):.1f} dB in {found['seconds']:.0f} s")


def plot(records: Records, folder: Path) -> list[Path]:
    """Curves and grids of images, as PNG files in a folder; their paths."""
    from nettrim.studies.inversion_plots import draw

    return draw(records, folder)


def _recipes(config: Config) -> tuple[str, str]:
    """What makes the networks and what makes a cell, in short; not which of them are asked for."""
    how = {name: value for name, value in asdict(config.recipe).items() if name not in ("seed", "rounds")}
    trained = {"data": config.data, **how}
    asked = ("recipe", "rounds", "layers", "attackers", "seeds")
    attack = {name: value for name, value in asdict(config).items() if name not in asked}
    return hashed(trained), hashed({**trained, **attack})


def _key(part: str, seed: int, number: int, layer: str, attacker: str, recipe: str) -> dict[str, Any]:
    return {"part": part, "seed": seed, "round": number, "layer": layer, "attacker": attacker, "recipe": recipe}


def _attacked(
    config: Config, samples: data.DataSet, model: nn.Module, made: Round, layer: str, attacker: str, seed: int
) -> dict[str, Any]:
    """One cell: the weight is chosen on other images, then the images are looked for and measured."""
    began, name = time.perf_counter(), LAYERS[layer]
    low, high = float(samples.train[0].min()), float(samples.train[0].max())
    own, count = torch.from_numpy(samples.validation[0]), config.tuning
    tuning, public = own[:count], own[count : count + config.public]
    true = samples.test[0][: config.images]
    aware, grey = attacker == "aware", attacker == "grey"
    spread = config.spread if grey else config.spread_public
    attack = Attack(0, config.iterations, 0.05, config.restarts, spread, low, high, aware, seed)

    def start(target: torch.Tensor) -> torch.Tensor | None:
        return None if grey else neighbours(model, name, target, public, config.nearest, aware)

    with torch.no_grad(), evaluation(model):
        ours, target = (represent(model, name, x) for x in (tuning, torch.from_numpy(true)))
    attack, chosen_by = choose_weight(model, name, tuning, attack, config.weights, start(ours))
    around = start(target)
    found = invert(model, name, target, true.shape[1:], attack, around)
    got, span, mean = found.images.numpy(), high - low, samples.validation[0].mean(0)
    return {
        "kept": made.kept,
        "weights": made.weights,
        **{"weight": attack.weight, "tuning_psnr": dict(zip(map(str, config.weights), chosen_by, strict=True))},
        "psnr": measures.psnr(got, true, span).tolist(),
        "ssim": measures.ssim(got, true, span).tolist(),
        "feature_error": found.feature_error.tolist(),
        "blank": measures.psnr(np.full_like(mean, low), true, span).tolist(),
        "mean": measures.psnr(mean, true, span).tolist(),
        "neighbours": None if around is None else measures.psnr(around.numpy(), true, span).tolist(),
        "passage": asdict(passage(model, name)),
        "span": [low, high],
        "shown": np.stack([true[:_SHOWN], got[:_SHOWN]]).astype(np.float16),
        "seconds": time.perf_counter() - began,
    }

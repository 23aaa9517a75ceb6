"""What can be seen of an image behind a layer of a network that is pruned in rounds (paper 000, section 5).

LeNet-5 or ResNet-18 is pruned to ``k = .8^n`` of its weights. At the output of each of five layers, for LeNet-5 before
its ReLU, attackers look for test images:

- "grey": the paper's objective, from noise around grey;
- "public": the same, from the mean of those public images whose representations are nearest;
- "aware": as "public", with mismatches measured through the weights that the mask has left; for layers that are one
  linear map, which the blocks of ResNet-18 are not.

Public images, and those on which each attacker chooses its weight of the total variation, for every layer and every
network, are validation images; the images that are reported are test images. An attacker who does not beat the blank
and the mean image on the dense network says nothing of the pruned ones (`nettrim.privacy.images.gate`). The mean of
the nearest public images is measured too: it is found without any search.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nettrim.privacy.inversion import Attack
from nettrim.privacy.iterative import Recipe, Round, iterative
from nettrim.privacy.layers import module_of, passage
from nettrim.report import write_atomically
from nettrim.studies import data, training
from nettrim.studies.image_search import SHOWN, search
from nettrim.studies.inversion_tables import tables
from nettrim.studies.networks import hashed
from nettrim.studies.pieces import UNIT, Units
from nettrim.studies.records import Records
from nettrim.studies.victims import Victim, chosen, exact

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("part", "seed", "round", "layer", "attacker", "recipe")


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
    victim : Victim
    device : str
        "cpu", "cuda", or "auto" for a GPU if there is one.
    """

    recipe: Recipe = field(default_factory=Recipe)
    rounds: tuple[int, ...] = (0, 4, 10, 15)
    layers: tuple[str, ...] = tuple(Victim().layers)
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
    victim: Victim = field(default_factory=Victim)
    device: str = "cpu"


_PAPER: dict[str, Any] = {
    **{"images": 64, "tuning": 16, "weights": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)},
    **{"iterations": 1000, "restarts": 8, "seeds": (0, 1, 2), "device": "auto"},
}
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
    "paper": Config(**_PAPER),
    "smoke-cifar10": Config(
        Recipe(rounds=2, epochs=1, retrain=1, size=60),
        *((0, 2), ("conv2-1", "conv4-1"), ("grey", "public")),
        images=4,
        tuning=2,
        public=40,
        weights=(1e-3, 1e-5),
        iterations=6,
        restarts=1,
        nearest=3,
        data="synthetic_colours",
        victim=Victim("resnet18", 2),
    ),
    "paper-cifar10": Config(
        Recipe(epochs=150),
        layers=tuple(Victim("resnet18").layers),
        attackers=("grey", "public"),
        data="cifar10",
        victim=Victim("resnet18"),
        **_PAPER,
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
    device, kept = chosen(config.device), Records(folder / "parts.jsonl", UNIT, records.clock)
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
        model = config.victim.build(seed, device)
        network = config.victim.network
        place = folder / f"{config.victim.title} on {config.data}, seed {seed}, {trained}"
        with exact():
            rounds = iterative(
                *(model, *samples.train, recipe, place, config.victim.augment), written=records.clock.check
            )
            for made in rounds:
                about = _key("accuracy", seed, made.number, "", "", trained)
                if records.find(**about) is None:
                    right = training.accuracy(model, *samples.test)
                    say(f"seed {seed}, {made.kept / made.weights:.1%} of the weights: {right:.2%} right")
                    records.add(**about, network=network, kept=made.kept, weights=made.weights, accuracy=right)
                for layer, attacker in [cell[1:] for cell in cells if cell[0] == made.number]:
                    about = _key("inversion", seed, made.number, layer, attacker, attacked)
                    if records.find(**about) is None:
                        units = Units(kept, " ".join(map(str, about.values())), folder)
                        found = _attacked(config, samples, model, made, layer, attacker, seed, units)
                        shown = folder / f"{layer}, {attacker}, round {made.number:02d}, seed {seed}, {attacked}.npy"
                        with write_atomically(shown) as file:
                            np.save(file, found.pop("shown").astype(np.float16), allow_pickle=False)
                        say(f"  {layer}, {attacker}: {np.mean(found['psnr']):.1f} dB in {found['seconds']:.0f} s")
                        found |= {"network": network, "images": os.path.relpath(shown, records.path.parent)}
                        records.add(**about, **found)


def plot(records: Records, folder: Path) -> list[Path]:
    """Curves and grids of images, as PNG files in a folder; their paths."""
    from nettrim.studies.inversion_plots import draw

    return draw(records, folder)


def _recipes(config: Config) -> tuple[str, str]:
    """What makes the networks and what makes a cell, in short; not which of them are asked for."""
    how = {name: value for name, value in asdict(config.recipe).items() if name not in ("seed", "rounds")}
    # of LeNet-5 the name is not asked for: records that were made before there was another one stay valid
    trained = {"data": config.data, **how, **({} if config.victim == Victim() else asdict(config.victim))}
    asked = ("recipe", "rounds", "layers", "attackers", "seeds", "victim", "device")
    attack = {name: value for name, value in asdict(config).items() if name not in asked}
    return hashed(trained), hashed({**trained, **attack})


def _key(part: str, seed: int, number: int, layer: str, attacker: str, recipe: str) -> dict[str, Any]:
    return {"part": part, "seed": seed, "round": number, "layer": layer, "attacker": attacker, "recipe": recipe}


def _attacked(
    config: Config,
    samples: data.DataSet,
    model: nn.Module,
    made: Round,
    layer: str,
    attacker: str,
    seed: int,
    units: Units,
) -> dict[str, Any]:
    """One cell: the weight is chosen on other images, then the images are looked for and measured."""
    low, high = float(samples.train[0].min()), float(samples.train[0].max())
    aware, grey = attacker == "aware", attacker == "grey"
    spread = config.spread if grey else config.spread_public
    attack = Attack(0, config.iterations, 0.05, config.restarts, spread, low, high, aware, seed)
    nearest = None if grey else config.nearest
    sizes = config.images, config.tuning, config.public
    found = search(model, config.victim.layers[layer], samples, attack, config.weights, sizes, nearest, units)
    true = samples.test[0][:SHOWN]
    return {
        "kept": made.kept,
        "weights": made.weights,
        **found,
        "passage": _passage(model, config.victim.layers[layer]),
        "span": [low, high],
        "shown": np.stack([true, np.array(found["shown"], np.float16)]),
    }


def _passage(model: nn.Module, layer: str) -> dict[str, int] | None:
    """What the weights of a layer let through; None for a block of several layers."""
    if not isinstance(module_of(model, layer), (nn.Linear, nn.Conv2d)):
        return None
    return asdict(passage(model, layer))

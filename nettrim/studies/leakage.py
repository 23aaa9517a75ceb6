"""One table that compares every pruner: accuracy, fidelity, guarantees, and what the network tells of its data.

At the same kept fractions LeNet-5, or ResNet-18 without batch norms, is pruned at random, by magnitude, in rounds, by
Net-Trim in three ways and to three coresets, or is trained privately, dense and with a mask. All attacks have the same
seeds and the same budget. Fidelity is of the pruned network as the method leaves it; attacks, R, and the way to the
dense network are of what would be released, after the same fine-tuning.

A row is made in parts, each of which is done once: a study that is stopped goes on within a row, a training within an
epoch, and a search for images within its iterations.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.privacy.checkpoints import Checkpoint, state_digest
from nettrim.privacy.iterative import Recipe, prunable
from nettrim.studies import data, training
from nettrim.studies.leakage_measures import Budget, fidelity, leakage
from nettrim.studies.leakage_networks import METHODS, Made, OutOfReach, Setting, dense_of, make, private, tune
from nettrim.studies.leakage_tables import plot, tables
from nettrim.studies.networks import hashed
from nettrim.studies.pieces import UNIT, Units
from nettrim.studies.records import Records
from nettrim.studies.victims import Victim, chosen, exact

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("method", "kept", "seed", "recipe")
#: that are not made from the trained network by a function
ROUNDS, MASKED = "magnitude, in rounds", "mask + DP-SGD"


@dataclass(frozen=True)
class Config:
    """Networks and attacks.

    Attributes
    ----------
    setting : Setting
        The seed of its recipe is replaced by each of `seeds`.
    budget : Budget
    rounds : tuple of int
        Of iterative pruning, whose kept fractions are those of all methods.
    methods : tuple of str
    layers : tuple of str
        Whose outputs are inverted.
    masked : float
        The epsilon of DP-SGD with a mask.
    references : int
        Networks of the membership attack.
    data : str
    seeds : tuple of int
    device : str
        "cpu", "cuda", or "auto" for a GPU if there is one. Net-Trim and the coresets are on the host.
    """

    setting: Setting = field(default_factory=lambda: Setting(Recipe(epochs=10, retrain=2)))
    budget: Budget = field(default_factory=Budget)
    rounds: tuple[int, ...] = (4, 10, 15)
    methods: tuple[str, ...] = tuple(METHODS)
    layers: tuple[str, ...] = tuple(Victim().layers)
    masked: float = 8.0
    references: int = 2
    data: str = "mnist"
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"


PRESETS = {
    "smoke": Config(
        Setting(Recipe(rounds=8, epochs=1, retrain=1, size=50), 300, 60, 1, 1, 60, (50.0,)),
        Budget(2, 2, 30, 5, 1, (1e-4,), 60, 20, 3, 30),
        rounds=(8,),
        methods=("magnitude", "Net-Trim, parallel", "coreset, deterministic weights"),
        layers=("conv1", "fc2"),
        masked=50.0,
        references=1,
        data="rectified synthetic_images",
    ),
    "cpu": Config(),
    "paper-mnist": Config(
        Setting(Recipe(), calibration=5000, tuning=10, private_epochs=30),
        Budget(64, 16, 4000, 1000, 4, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 5000, 5000, 30, 5000),
        references=8,
        seeds=(0, 1, 2),
        device="auto",
    ),
    # ResNet-18 on two thirds of the JPEG-CIFAR that is trained on, the others for the references
    "paper": Config(
        Setting(
            *(Recipe(epochs=150), 30_000, 1000, 10, 30, 1024),
            victim=Victim("resnet18", norm="group"),
            private_rate=0.5,
        ),
        Budget(64, 16, 4000, 1000, 4, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 5000, 1000, 30, 5000),
        layers=tuple(Victim("resnet18").layers),
        references=2,
        data="raised cifar10",
        device="auto",
    ),
    "smoke-cifar10": Config(
        Setting(
            *(Recipe(rounds=2, epochs=1, retrain=1, size=50), 300, 40, 1, 1, 60, (50.0,)),
            victim=Victim("resnet18", 2, "group"),
        ),
        Budget(2, 2, 20, 4, 1, (1e-4,), 40, 8, 3, 20),
        rounds=(2,),
        methods=("magnitude", "Net-Trim, parallel", "coreset, deterministic weights", "coreset, neurons"),
        layers=("conv2-1", "conv4-1"),
        masked=50.0,
        references=1,
        data="raised synthetic_colours",
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
        Trained weights, and the parts of a row that is being made, are kept in it.
    say : callable
        Told what is done.
    """
    device, recipe = chosen(config.device), _recipe(config)
    parts = Records(folder / "parts.jsonl", UNIT, records.clock)
    for seed in config.seeds:
        setting = replace(config.setting, recipe=replace(config.setting.recipe, seed=seed))
        fractions = [round((1 - setting.recipe.share) ** n, 3) for n in config.rounds]
        wanted = [("dense", 1.0), *((f"DP-SGD, epsilon {e:g}", 1.0) for e in setting.targets)]
        wanted += [(m, k) for k in fractions for m in (*config.methods, ROUNDS, f"{MASKED}, epsilon {config.masked:g}")]
        about: dict[str, Any] = {"seed": seed, "recipe": recipe}
        left = [key for key in wanted if records.find(method=key[0], kept=key[1], **about) is None]
        if not left:
            continue
        samples = load(config.data, seed)
        with exact():
            place = folder / f"{setting.victim.title} on {config.data}, seed {seed}, {hashed_of(setting)}"
            dense, rounds = dense_of(setting, samples, place, device, records.clock.check, config.rounds)
            about["network"] = state_digest(dense)[:8]
            _of_one_network(records, about)
            references = [
                _reference(config, setting, samples, k, folder, device, parts) for k in range(config.references)
            ]
            for method, kept in left:
                units = Units(parts, f"{method} {kept} of {about['network']}, {seed}, {recipe}", folder)
                try:
                    row = _row(config, setting, samples, dense, rounds, references, method, kept, units)
                except OutOfReach as refused:
                    say(f"{method}, {kept:.1%}: {refused}")
                    row = {"refused": str(refused)}
                else:
                    say(f"{method}, {kept:.1%}: {row['accuracy']:.2%}, then {row['tuned']:.2%}, in {row['all']:.0f} s")
                try:
                    records.add(method=method, kept=kept, **about, **row)
                finally:
                    units.forget()


def _recipe(config: Config) -> str:
    """What makes a row, in short."""
    made = {k: v for k, v in asdict(config).items() if k not in ("rounds", "methods", "seeds", "device")}
    for name in ("victim", "private_rate"):
        # only where they are not what they have always been: earlier records stay valid
        if getattr(config.setting, name) == getattr(Setting(Recipe()), name):
            del made["setting"][name]
    return hashed(made)


def _row(
    config: Config,
    setting: Setting,
    samples: data.DataSet,
    dense: nn.Sequential,
    rounds: dict[float, nn.Sequential],
    references: list[nn.Sequential],
    method: str,
    kept: float,
    units: Units,
) -> dict[str, Any]:
    """One network: it is made, tuned and attacked, each of which is done once."""
    model = copy.deepcopy(dense)
    began = time.perf_counter()

    def prune(model: nn.Module, _: Checkpoint) -> dict[str, Any]:
        began = time.perf_counter()
        made = _made(config, setting, samples, dense, rounds, method, kept, units)
        made.seconds = made.seconds or time.perf_counter() - began
        model.load_state_dict(made.model.state_dict())
        sizes = [(int((w != 0).sum()), w.numel()) for w in prunable(model).values()]
        return {
            **fidelity(made, dense, samples, setting),
            **{"seconds": made.seconds, "privacy": made.privacy, **made.about},
            **{"left": sum(n for n, _ in sizes) / sum(n for _, n in sizes), "trained": not made.tuned},
        }

    row = units.network("pruned", model, prune)
    if not row.pop("trained"):
        units.network("tuned", model, lambda model, state: tune(model, setting, samples, state))
    model.eval()
    row |= {"tuned": training.accuracy(model, *samples.validation), "test": training.accuracy(model, *samples.test)}
    row |= leakage(model, dense, references, samples, setting, config.budget, config.layers, units)
    # of this piece
    return row | {"all": time.perf_counter() - began}


def _of_one_network(records: Records, about: dict[str, Any]) -> None:
    """That the rows there are were made from the trained network that there is: seeds do not fix it to the last bit.

    Raises
    ------
    ValueError
        They are of another one, whose weights are not in the folder, and which other processors would train.
    """
    others = [row for row in records.rows if (row["seed"], row["recipe"]) == (about["seed"], about["recipe"])]
    if any(row.get("network") != about["network"] for row in others):
        raise ValueError(
            f"{records.path} has rows of another trained network than the one beside it, {about['network']}: rows of "
            "two networks do not compare. Bring that network's weights, or begin in another folder (-o)"
        )


def load(name: str, seed: int) -> data.DataSet:
    """A data set, its training samples in a random order; coresets need inputs without a sign.

    Of a "rectified" one, what is negative is zero; a "raised" one begins at the least value of each channel.
    """
    whole = data.load(name.removeprefix("rectified ").removeprefix("raised "), seed)
    order = np.random.default_rng(seed).permutation(len(whole.train[0]))
    parts = [(whole.train[0][order], whole.train[1][order]), whole.validation, whole.test]
    if name.startswith("rectified "):
        parts = [(np.maximum(x, 0), y) for x, y in parts]
    if name.startswith("raised "):
        low = parts[0][0].min(axis=(0, 2, 3), keepdims=True)
        parts = [(np.maximum(x - low, 0), y) for x, y in parts]
    return data.DataSet(name, *parts)


def hashed_of(setting: Setting) -> str:
    """A short name for what makes the trained network."""
    return hashed({**asdict(setting.recipe), "members": setting.members})


def _made(
    config: Config,
    setting: Setting,
    samples: data.DataSet,
    dense: nn.Sequential,
    rounds: dict[float, nn.Sequential],
    method: str,
    kept: float,
    units: Units,
) -> Made:
    device = next(dense.parameters()).device
    if method == "dense":
        return Made(dense, certified=0.0, tuned=False)
    if method == ROUNDS:
        return Made(rounds[kept], tuned=False)
    if method.startswith(MASKED):
        masks = {name: (w.detach() != 0).cpu().numpy() for name, w in prunable(rounds[kept]).items()}
        return private(setting, samples, config.masked, masks, device, units)
    if method.startswith("DP-SGD"):
        return private(setting, samples, float(method.rpartition(" ")[2]), None, device, units)
    return make(method, dense, kept, setting, samples, units)


def _reference(
    config: Config,
    setting: Setting,
    samples: data.DataSet,
    number: int,
    folder: Path,
    device: torch.device,
    parts: Records,
) -> nn.Sequential:
    """A network that has seen none of the members."""
    model, recipe, victim = setting.victim.build(1000 + number, device), setting.recipe, setting.victim
    x, y = (part[setting.members :][number :: config.references] for part in samples.train)

    def train(model: nn.Module, state: Checkpoint) -> None:
        batches = training.Batches(x, y, recipe.size, number, victim.augment)
        training.sgd(model, batches, recipe.epochs, recipe.rate, recipe.momentum, checkpoint=state)

    of = f"reference {number} of {config.references}, {victim.title} on {config.data}, seed {recipe.seed}"
    Units(parts, f"{of}, {hashed_of(setting)}", folder).network("trained", model, train)
    return model.eval()

"""One table that compares every pruner: accuracy, fidelity, guarantees, and what the network tells of its data.

At the same kept fractions LeNet-5 is pruned at random, by magnitude, in rounds, by Net-Trim in three ways and to three
coresets, or is trained privately, dense and with a mask. All attacks have the same seeds and the same budget. Fidelity
is of the pruned network as the method leaves it; attacks, R, and the way to the dense network are of what would be
released, after the same fine-tuning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.privacy.checkpoints import state_digest
from nettrim.privacy.iterative import Recipe, prunable
from nettrim.report import write_atomically
from nettrim.studies import data, models, training
from nettrim.studies.inversion import LAYERS
from nettrim.studies.leakage_measures import Budget, fidelity, leakage
from nettrim.studies.leakage_networks import METHODS, Made, Setting, dense_of, make, private, tune
from nettrim.studies.leakage_tables import plot, tables
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records

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
    """

    setting: Setting = field(default_factory=lambda: Setting(Recipe(epochs=10, retrain=2)))
    budget: Budget = field(default_factory=Budget)
    rounds: tuple[int, ...] = (4, 10, 15)
    methods: tuple[str, ...] = tuple(METHODS)
    layers: tuple[str, ...] = tuple(LAYERS)
    masked: float = 8.0
    references: int = 2
    data: str = "mnist"
    seeds: tuple[int, ...] = (0,)


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
    "paper": Config(
        Setting(Recipe(), calibration=5000, tuning=10, private_epochs=30),
        Budget(64, 16, 4000, 1000, 4, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 5000, 5000, 30, 5000),
        references=8,
        seeds=(0, 1, 2),
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
    recipe = hashed({k: v for k, v in asdict(config).items() if k not in ("rounds", "methods", "seeds")})
    for seed in config.seeds:
        setting = replace(config.setting, recipe=replace(config.setting.recipe, seed=seed))
        fractions = [round((1 - setting.recipe.share) ** n, 3) for n in config.rounds]
        wanted = [("dense", 1.0), *((f"DP-SGD, epsilon {e:g}", 1.0) for e in setting.targets)]
        wanted += [(m, k) for k in fractions for m in (*config.methods, ROUNDS, f"{MASKED}, epsilon {config.masked:g}")]
        about = {"seed": seed, "recipe": recipe}
        left = [key for key in wanted if records.find(method=key[0], kept=key[1], **about) is None]
        if not left:
            continue
        samples = load(config.data, seed)
        dense, rounds = dense_of(
            setting, samples, folder / f"LeNet-5 on {config.data}, seed {seed}, {hashed_of(setting)}"
        )
        about["network"] = state_digest(dense)[:8]
        _of_one_network(records, about)
        references = [_reference(config, setting, samples, k, folder) for k in range(config.references)]
        for method, kept in left:
            began = time.perf_counter()
            try:
                made = _made(config, setting, samples, dense, rounds, method, kept)
            except ValueError as refused:
                records.add(method=method, kept=kept, **about, refused=str(refused))
                say(f"{method}, {kept:.1%}: {refused}")
                continue
            made.seconds = time.perf_counter() - began
            sizes = [(int((w != 0).sum()), w.numel()) for w in prunable(made.model).values()]
            row = fidelity(made, dense, samples, setting)
            if made.tuned:
                tune(made.model, setting, samples)
            row |= {"tuned": training.accuracy(made.model, *samples.validation), "seconds": made.seconds}
            row |= {"test": training.accuracy(made.model, *samples.test), "privacy": made.privacy, **made.about}
            row |= leakage(made.model, dense, references, samples, setting, config.budget, config.layers)
            row |= {"left": sum(n for n, _ in sizes) / sum(n for _, n in sizes), "all": time.perf_counter() - began}
            records.add(method=method, kept=kept, **about, **row)
            say(f"{method}, {kept:.1%}: {row['accuracy']:.2%}, then {row['tuned']:.2%}, in {row['all']:.0f} s")


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
    """A data set, or one without what is negative; the training samples in a random order."""
    whole = data.load(name.removeprefix("rectified "), seed)
    order = np.random.default_rng(seed).permutation(len(whole.train[0]))
    parts = [(whole.train[0][order], whole.train[1][order]), whole.validation, whole.test]
    if name.startswith("rectified "):
        parts = [(np.maximum(x, 0), y) for x, y in parts]
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
) -> Made:
    if method == "dense":
        return Made(dense, certified=0.0, tuned=False)
    if method == ROUNDS:
        return Made(rounds[kept], tuned=False)
    if method.startswith(MASKED):
        masks = {name: (w.detach() != 0).numpy() for name, w in prunable(rounds[kept]).items()}
        return private(setting, samples, config.masked, masks)
    if method.startswith("DP-SGD"):
        return private(setting, samples, float(method.rpartition(" ")[2]))
    return make(method, dense, kept, setting, samples)


def _reference(config: Config, setting: Setting, samples: data.DataSet, number: int, folder: Path) -> nn.Sequential:
    """A network that has seen none of the members."""
    from safetensors.torch import load_file, save

    torch.manual_seed(1000 + number)
    model = models.lenet5()
    path = folder / f"reference {number} of {config.references}, seed {setting.recipe.seed}, {hashed_of(setting)}"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    x, y = (part[setting.members :][number :: config.references] for part in samples.train)
    recipe = setting.recipe
    training.sgd(model, training.Batches(x, y, recipe.size, number), recipe.epochs, recipe.rate, recipe.momentum)
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(save(model.state_dict()))
    return model

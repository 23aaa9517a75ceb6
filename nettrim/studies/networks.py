"""Real networks: what is kept and what it costs, by plain and by reweighted l1, and after training what is left.

Four kinds of networks, trained here: the fully connected network of Aghasi et al. (2020) with
dropout, LeNet-5, a CIFAR ResNet-18 of width 16 (batch norms, sums), and a small transformer encoder with ReLU and with
GELU on the rows of digits. Calibration samples are training samples; accuracies are of validation and of test samples,
which nothing is chosen by here.

Fine-tuning trains the weights that are left with Adam, at a rate that decays to zero. Dropout, if the network has it,
is made weaker by the square root of what is kept, as Han et al. (2015, section 3.2) propose: a sparse network needs
less.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nettrim.torch as ntt
from nettrim.report import write_atomically
from nettrim.studies import data, models, training
from nettrim.studies.batches import Augment
from nettrim.studies.records import Records, interval

__all__ = [
    "KEY",
    "PRESETS",
    "Case",
    "Config",
    "accuracies",
    "augment",
    "hashed",
    "named",
    "remembered",
    "run",
    "tables",
    "trained",
    "weaken_dropout",
]

#: what tells records apart
KEY = ("case", "seed", "scheme", "epsilon", "rounds", "recipe")

_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "fc": models.fully_connected,
    "lenet5": models.lenet5,
    "resnet18, width 16": lambda: models.resnet18(16),
    "encoder, ReLU": lambda: models.Encoder("relu"),
    "encoder, GELU": lambda: models.Encoder("gelu"),
    "encoder, small": lambda: models.Encoder("gelu", width=16, heads=2, hidden=32, layers=1),
    "resnet18, width 2": lambda: models.resnet18(2),
    "fc, no dropout": lambda: models.fully_connected(dropout=0.0),
    "fc, small": lambda: models.fully_connected((784, 30, 20, 10), 0.0),
    "lenet, 32-64-512": models.net_trim_lenet,
    "convnet": models.cifar_convnet,
    "convnet, width 16": lambda: models.cifar_convnet(16, (96, 48)),
    "convnet, width 2": lambda: models.cifar_convnet(2, (16,)),
}


@dataclass(frozen=True)
class Run:
    """A pruning.

    Attributes
    ----------
    scheme : str
    epsilon : float or dict
        One number, or numbers by patterns of layers' names.
    rounds : int
        Of reweighted l1, at most.
    epochs : int
        Of fine-tuning, 0 for none.
    calibration : int, optional
        Samples, if not as many as for the case's other runs.
    """

    scheme: str
    epsilon: float | dict[str, float]
    rounds: int = 1
    epochs: int = 0
    calibration: int | None = None


@dataclass(frozen=True)
class Case:
    """A network and what is done with it.

    Attributes
    ----------
    name : str
        One of the builders'.
    data : str
        See `nettrim.studies.data.load`.
    epochs : int
        Of training.
    calibration : int
        Training samples that the layers are pruned on, a tenth of them held out.
    runs : tuple of Run
    rate, weight_decay : float
        Of training; the rate at its beginning.
    augment : bool
        Whether images are mirrored and shifted.
    tuning_rate : float
        Of fine-tuning, at its beginning.
    seeds : int, optional
        The first so many of the configuration's seeds only.
    """

    name: str
    data: str
    epochs: int
    calibration: int
    runs: tuple[Run, ...]
    rate: float = 1e-3
    weight_decay: float = 0.0
    augment: bool = False
    tuning_rate: float = 1e-3
    seeds: int | None = None

    @property
    def training(self) -> dict[str, Any]:
        """What makes the trained network."""
        names = ("name", "data", "epochs", "rate", "weight_decay", "augment")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Config:
    """Cases and seeds."""

    cases: tuple[Case, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


_PLAIN = (Run("parallel", 0.05), Run("cascade", 0.1))
#: the last layers have few weights, and all that comes before passes through them: they may err less
_FC = {"1": 0.4, "4": 0.4, "7": 0.15, "10": 0.05}
_LENET = {"0": 0.1, "3": 0.12, "7": 0.25, "9": 0.12, "11": 0.05}
_CPU = (
    Case("fc", "mnist", 20, 3000, (*_PLAIN, Run("parallel", _FC, 5, 10, 5000)), tuning_rate=3e-3),
    Case("lenet5", "mnist", 10, 2000, (*_PLAIN, Run("parallel", _LENET, 5, 10)), rate=2e-3, tuning_rate=3e-3),
    Case("encoder, ReLU", "digit_rows", 3, 1000, (*_PLAIN, Run("parallel", 0.2, 5, 2)), seeds=1),
    Case("encoder, GELU", "digit_rows", 3, 1000, (*_PLAIN, Run("parallel", 0.2, 5, 2)), seeds=1),
    Case(
        *("resnet18, width 16", "cifar10", 3, 300, (*_PLAIN, Run("parallel", 0.2, 5, 1))),
        rate=3e-3,
        weight_decay=1e-2,
        augment=True,
        seeds=1,
    ),
)
_SMOKE = (
    Case("fc", "synthetic_images", 2, 200, (Run("cascade", 0.2, 2, 1),)),
    Case("lenet5", "synthetic_images", 1, 40, (Run("parallel", 0.2),)),
    Case("encoder, small", "synthetic_rows", 1, 60, (Run("parallel", 0.1, 1, 1),)),
    Case("resnet18, width 2", "synthetic_colours", 1, 20, (Run("parallel", 0.2),)),
)
PRESETS = {"smoke": Config(_SMOKE, (0,)), "cpu": Config(_CPU)}


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
    for case in config.cases:
        for seed in config.seeds[: case.seeds]:
            left = [one for one in case.runs if records.find(case=case.name, seed=seed, **_key(case, one)) is None]
            if left:
                samples = data.load(case.data, seed)
                model = trained(case, samples, seed, folder, say)
                for one in left:
                    _pruned(case, samples, model, seed, one, records, say)


def trained(case: Case, samples: data.DataSet, seed: int, folder: Path, say: Callable[[str], Any]) -> nn.Module:
    """The trained network, from the folder if it is there."""
    torch.manual_seed(seed)

    def train(model: nn.Module) -> None:
        batches = training.Batches(*samples.train, seed=seed, augment=augment(case))
        training.train(
            *(model, batches, case.epochs, case.rate, case.weight_decay),
            progress=lambda at, loss: say(f"{case.name}, seed {seed}: epoch {at} of {case.epochs}, loss {loss:.4f}"),
        )

    return remembered(folder / f"{named(case, seed)}.safetensors", _BUILDERS[case.name](), train)


def named(case: Case, seed: int) -> str:
    """The name of a trained network's files: the same training, the same name."""
    return f"{case.name}, seed {seed}, {hashed(case.training)}"


def remembered(path: Path, model: nn.Module, train: Callable[[nn.Module], object]) -> nn.Module:
    """The model in evaluation mode, with the weights of a file; if there is none, trained, and the file written."""
    from safetensors.torch import load_file, save

    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    train(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(save(model.state_dict()))
    return model.eval()


def weaken_dropout(model: nn.Module, kept: float) -> None:
    """Dropout for what is left of a network, in place: rates times the square root of the kept fraction (Han 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p *= kept**0.5


def _key(case: Case, one: Run) -> dict[str, Any]:
    """What tells a record from those of other runs, other presets and other versions of this file."""
    made = {**case.training, **asdict(one), "calibration": one.calibration or case.calibration}
    recipe = hashed({**made, "tuning_rate": case.tuning_rate})
    return {"scheme": one.scheme, "epsilon": one.epsilon, "rounds": one.rounds, "recipe": recipe}


def hashed(values: dict[str, Any]) -> str:
    """A short name for values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _pruned(
    case: Case,
    samples: data.DataSet,
    model: nn.Module,
    seed: int,
    one: Run,
    records: Records,
    say: Callable[[str], Any],
) -> None:
    """Prune, train what is left, and record both."""
    about = f"{case.name}, seed {seed}, {one.scheme}, epsilon {one.epsilon}, {one.rounds} rounds"
    chosen = np.random.default_rng(seed).permutation(len(samples.train[0]))[: one.calibration or case.calibration]
    loader = list(torch.from_numpy(samples.train[0][chosen]).split(200))
    began = time.perf_counter()
    pruned = ntt.prune(model, loader, one.epsilon, one.scheme, rounds=one.rounds, feas_tol=1e-3)
    row: dict[str, Any] = {
        **{"case": case.name, "seed": seed, **_key(case, one)},
        "seconds": time.perf_counter() - began,
        "calibration": len(chosen),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": sum(r.weights for r in pruned.reports),
        "kept": pruned.kept,
        "dense": accuracies(model, samples),
        "pruned": accuracies(pruned.model, samples),
        "layers": pruned.to_dict()["layers"],
    }
    say(f"{about}: kept {pruned.kept:.2%}, {row['dense']['test']:.2%} -> {row['pruned']['test']:.2%}")
    if one.epochs:
        torch.manual_seed(seed)
        weaken_dropout(pruned.model, pruned.kept)
        optimizer = torch.optim.Adam(pruned.model.parameters(), case.tuning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, one.epochs)
        ntt.finetune(
            pruned.model,
            training.Batches(*samples.train, seed=seed, augment=augment(case)),
            nn.functional.cross_entropy,
            optimizer,
            one.epochs,
            progress=lambda epoch, loss: schedule.step(),
            names=[f"{report.name}.*" for report in pruned.reports],
        )
        row |= {"epochs": one.epochs, "tuned": accuracies(pruned.model, samples)}
        say(f"{about}: {row['tuned']['test']:.2%} after {one.epochs} epochs on what is left")
    records.add(**row)


def accuracies(model: nn.Module, samples: data.DataSet) -> dict[str, float]:
    """On the validation and on the test samples."""
    parts = {"validation": samples.validation, "test": samples.test}
    return {name: training.accuracy(model, *part) for name, part in parts.items()}


def augment(case: Case) -> Augment | None:
    """What is done to a case's training images."""
    return training.flipped_and_shifted if case.augment else None


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """One table, with a row for each case and run: means over the seeds, with 95 % intervals (Student's t)."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in records.rows:
        epsilon = row["epsilon"]
        if isinstance(epsilon, dict):
            epsilon = ", ".join(f"{pattern}: {number:g}" for pattern, number in epsilon.items())
        groups.setdefault((row["case"], row["scheme"], f"{epsilon}", row["rounds"], row["recipe"]), []).append(row)
    rows = []
    for (case, scheme, epsilon, rounds, _), found in groups.items():
        rows.append(
            {
                "network": case,
                "scheme": scheme,
                "epsilon": epsilon,
                "rounds": str(rounds),
                "seeds": str(len(found)),
                "kept": _percent([row["kept"] for row in found]),
                "dense": _percent([row["dense"]["test"] for row in found]),
                "pruned": _percent([row["pruned"]["test"] for row in found]),
                "fine-tuned": _percent([row["tuned"]["test"] for row in found if "tuned" in row]),
                "tuned - dense": _percent(
                    [row["tuned"]["test"] - row["dense"]["test"] for row in found if "tuned" in row]
                ),
            }
        )
    return {"Real networks: weights kept, and test accuracy in percent": rows}


def _percent(values: list[float]) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{100 * mean:.2f}" + (f" ± {100 * half:.2f}" if len(values) > 1 else "")

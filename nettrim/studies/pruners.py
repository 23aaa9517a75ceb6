"""Whole networks at equal counts: nettrim's methods beside the pruners that it is compared with.

Every method prunes the same trained network on the same calibration samples, to the same fraction of all weights
(biases stay and do not count). "even" is that fraction in every layer, "allocated" what `nettrim.torch.allocate`
chooses, from ALPS's curves, for all methods alike. Afterwards all are fine-tuned in the same way: Adam on what is left,
the same batches, rate and epochs. Accuracies are of validation and of test samples; nothing is chosen by the latter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nettrim.torch as ntt
from nettrim.budget import Allocation
from nettrim.studies import data, training
from nettrim.studies.networks import Case, accuracies, augment, hashed, trained
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "run", "tables"]

#: what tells records apart
KEY = ("case", "seed", "kept", "method", "recipe")

#: name, whether densities are allocated, and how `prune` is called
_METHODS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("l0, cascade, allocated", True, {"method": "l0", "scheme": "cascade"}),
    ("l0, even", False, {"method": "l0"}),
    ("l1, 4 rounds, allocated", True, {"rounds": 4, "refit": "free", "feas_tol": 1e-3}),
    ("magnitude, even", False, {"method": "magnitude"}),
    ("magnitude + refit, allocated", True, {"method": "magnitude", "refit": "free"}),
    ("wanda + refit, allocated", True, {"method": "wanda", "refit": "free"}),
    ("sparsegpt + refit, allocated", True, {"method": "sparsegpt", "refit": "free"}),
    ("alps + refit, even", False, {"method": "alps", "refit": "free"}),
    ("alps + refit, allocated", True, {"method": "alps", "refit": "free"}),
    ("alps + refit, cascade, allocated", True, {"method": "alps", "refit": "free", "scheme": "cascade"}),
)
#: methods of nettrim
OURS = ("l0", "l1")


@dataclass(frozen=True)
class Config:
    """Networks, how much of them is kept, and how long they are fine-tuned.

    Attributes
    ----------
    cases : tuple of Case
        Their `calibration` counts; their runs do not.
    kept : tuple of float
    epochs : tuple of int
        Of fine-tuning, for each case.
    methods : tuple of str, optional
        By their names; default all.
    seeds : tuple of int
    by_batch : bool
        Whether the rate of fine-tuning decays with every batch, as it must in a single epoch, rather than every epoch.
    """

    cases: tuple[Case, ...]
    kept: tuple[float, ...]
    epochs: tuple[int, ...]
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    by_batch: bool = False


_FEW = ("l0, cascade, allocated", "alps + refit, cascade, allocated", "alps + refit, even", "magnitude, even")
PRESETS = {
    "smoke": Config(
        (Case("lenet5", "synthetic_images", 1, 40, ()),), (0.2,), (1,), ("l0, even", "wanda + refit, allocated")
    ),
    "cpu": Config(
        (Case("lenet5", "mnist", 10, 2000, (), rate=2e-3, tuning_rate=1e-3),),
        *((0.5, 0.2, 0.1, 0.05, 0.02, 0.01), (2,)),
    ),
    "cifar": Config(
        (
            Case(
                *("resnet18, width 16", "cifar10", 3, 300, ()),
                rate=3e-3,
                weight_decay=1e-2,
                augment=True,
                tuning_rate=1e-3,
            ),
        ),
        *((0.2, 0.1, 0.05), (1,), _FEW),
        by_batch=True,
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
    for case, epochs in zip(config.cases, config.epochs, strict=True):
        for seed in config.seeds:
            for kept in config.kept:
                recipe = hashed({**asdict(case), "epochs": epochs} | ({"decay": "batch"} if config.by_batch else {}))
                left = [
                    one
                    for one in _METHODS
                    if (config.methods is None or one[0] in config.methods)
                    and records.find(case=case.name, seed=seed, kept=kept, method=one[0], recipe=recipe) is None
                ]
                if not left:
                    continue
                samples = data.load(case.data, seed)
                model = trained(case, samples, seed, folder, say)
                chosen = np.random.default_rng(seed).permutation(len(samples.train[0]))[: case.calibration]
                loader = list(torch.from_numpy(samples.train[0][chosen]).split(200))
                allocation, seconds = None, 0.0
                if any(one[1] for one in left):
                    began = time.perf_counter()
                    allocation = ntt.allocate(model, loader, kept)
                    seconds = time.perf_counter() - began
                    say(f"{case.name}, {kept:.0%} kept: densities in {seconds:.0f} s\n{allocation.table()}")
                for method, allocated, how in left:
                    density = allocation if allocated else kept
                    about = {"case": case.name, "seed": seed, "kept": kept, "method": method, "recipe": recipe}
                    row = _one(case, samples, model, loader, density, how, epochs, seed, config.by_batch)
                    row["seconds_allocate"] = seconds if allocated else 0.0
                    records.add(**about, **row)
                    say(
                        f"{case.name}, {kept:.0%} kept, {method}: {row['pruned']['test']:.2%}, after {epochs} epochs "
                        f"{row['tuned']['test']:.2%} (dense {row['dense']['test']:.2%}), {row['seconds']:.0f} s"
                    )


def _one(
    case: Case,
    samples: data.DataSet,
    model: nn.Module,
    loader: list[torch.Tensor],
    density: float | Allocation | None,
    how: dict[str, Any],
    epochs: int,
    seed: int,
    by_batch: bool,
) -> dict[str, Any]:
    """Prune, measure, fine-tune, measure."""
    began = time.perf_counter()
    pruned = ntt.prune(model, loader, density=density, **how)
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - began,
        "left": pruned.kept,
        "layers": {r.name: r.density for r in pruned.reports},
        "error": pruned.reports[-1].holdout,
        "dense": accuracies(model, samples),
        "pruned": accuracies(pruned.model, samples),
    }
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(pruned.model.parameters(), case.tuning_rate)
    batches = training.Batches(*samples.train, seed=seed, augment=augment(case))
    steps = epochs * len(batches) if by_batch else epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ntt.finetune(
        *(pruned.model, batches, nn.functional.cross_entropy, optimizer, epochs),
        progress=None if by_batch else lambda epoch, loss: schedule.step(),
        names=[f"{report.name}.*" for report in pruned.reports],
        schedule=schedule if by_batch else None,
    )
    return row | {"epochs": epochs, "tuned": accuracies(pruned.model, samples)}


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """A row for each network and count: the best of nettrim's methods beside the best rival, chosen by validation."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in records.rows:
        groups.setdefault((row["case"], row["kept"]), []).append(row)
    rows = []
    for (case, kept), found in groups.items():
        cells = {"network": case, "kept": f"{kept:.0%}", "dense": _percent(found[0]["dense"]["test"])}
        for when, title in (("pruned", ""), ("tuned", ", tuned")):
            for who, ours in (("nettrim", True), ("rival", False)):
                some = [row for row in found if row["method"].startswith(OURS) == ours]
                best = max(some, key=lambda row: row[when]["validation"]) if some else None
                cells[who + title] = "" if best is None else f"{_percent(best[when]['test'])} ({best['method']})"
        rows.append(cells)
    return {"Equal counts: test accuracy in percent": rows}


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"

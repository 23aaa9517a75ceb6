"""Clipping against noise: five steps on one batch, and whole trainings (paper 002, section 4.1.4, Figures 9 and 10).

"steps": from the initial values and from a trained network, each mode of the mechanism takes a few steps on a fixed
batch; the loss and the norm of the batch's gradient are compared with those before. "training": the same modes at the
same rate and size for some epochs, with the larger noise of Figure 10.
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

from nettrim.privacy import dp_sgd
from nettrim.studies import data
from nettrim.studies.dp_noise_clip_report import plot, tables
from nettrim.studies.dp_snapshots import restore, snapshots
from nettrim.studies.dp_training import SGD, Process, build, standing, subset, train
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart
KEY = ("part", "start", "mode", "seed", "recipe")

#: whether each mode clips and adds noise
_MODES = ((False, False), (True, False), (False, True), (True, True))


@dataclass(frozen=True)
class Config:
    """Steps, batches and trainings.

    Attributes
    ----------
    steps, batches : int
        Steps on each batch, and batches that are averaged over.
    size : int
        Of a batch, for steps and trainings.
    rate, C, noise : float
        Of the steps; `noise` is sigma.
    before : int
        Epochs of SGD before the steps of the trained network.
    epochs : int
        Of the trainings.
    sigma : float
        Of the trainings.
    data : str
        See `nettrim.studies.data.load`.
    samples : int, optional
        Training samples; default all.
    watched : int, optional
        Samples that the curves are of; default all.
    sgd : Process
    seeds : tuple of int
    device : str
    """

    steps: int = 5
    batches: int = 20
    size: int = 128
    rate: float = 0.1
    C: float = 1.0
    noise: float = 0.4
    before: int = 10
    epochs: int = 30
    sigma: float = 2.4
    data: str = "mnist"
    samples: int | None = None
    watched: int | None = None
    sgd: Process = SGD
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"

    @property
    def recipe(self) -> str:
        """A short name for everything but the seeds and the device."""
        return hashed({k: v for k, v in asdict(self).items() if k not in ("seeds", "device")})


PRESETS = {
    "smoke": Config(batches=2, size=64, before=2, epochs=1, data="synthetic_images", watched=100, seeds=(0, 1)),
    "cpu": Config(epochs=8, samples=11_000, watched=2000),
    "paper": Config(batches=100, device="auto"),
}


def run(config: Config, records: Records, folder: Path, say: Callable[[str], Any] = print) -> None:
    """Do what is not in the records yet.

    Parameters
    ----------
    config : Config
    records : Records
        With the key `KEY`.
    folder : Path
        Weights that the steps start from are kept in it.
    say : callable
        Told what is done.
    """
    for seed in config.seeds:
        about: dict[str, Any] = {"seed": seed, "recipe": config.recipe}
        wanted = [(p, s) for p, s in (("steps", "initial"), ("steps", "trained"), ("training", "initial"))]
        left = [
            (part, start, clipped, noisy)
            for part, start in wanted
            for clipped, noisy in _MODES
            if records.find(part=part, start=start, mode=_mechanism(config, part, clipped, noisy).name, **about) is None
        ]
        if not left:
            continue
        samples = subset(config.data, seed, config.samples)
        paths = snapshots(
            folder, config.recipe, config.sgd, samples, config.before, (0, config.before), seed, config.device
        )
        for part, start, clipped, noisy in left:
            mechanism, began = _mechanism(config, part, clipped, noisy), time.perf_counter()
            model = restore(build(seed, config.device), paths[config.before if start == "trained" else 0])
            if part == "steps":
                found = _steps(config, model, samples, mechanism, seed)
            else:
                found = _training(config, model, samples, mechanism, seed)
            seconds = time.perf_counter() - began
            records.add(part=part, start=start, mode=mechanism.name, **about, **found, seconds=seconds)
            say(f"{part} from {start}, {mechanism.name}, seed {seed}: {seconds:.1f} s")


def _mechanism(config: Config, part: str, clipped: bool, noisy: bool) -> dp_sgd.Mechanism:
    return dp_sgd.Mechanism(config.C, config.noise if part == "steps" else config.sigma, clipped, noisy)


def _steps(
    config: Config, model: nn.Module, samples: data.DataSet, mechanism: dp_sgd.Mechanism, seed: int
) -> dict[str, Any]:
    """Loss and gradient norm of each batch before and after some steps on it."""
    x, y = (torch.from_numpy(part) for part in samples.train)
    device = next(model.parameters()).device
    start = {name: value.clone() for name, value in model.state_dict().items()}
    rows = np.random.default_rng(seed)
    random = dp_sgd.seeded(seed, "noise")
    found: dict[str, list[float]] = {"loss": [], "norm": [], "loss_before": [], "norm_before": []}
    for _ in range(config.batches):
        chosen = torch.from_numpy(rows.permutation(len(x))[: config.size])
        batch = x[chosen].to(device), y[chosen].to(device)
        model.load_state_dict(start)
        for when in ("_before", ""):
            if not when:
                for _ in range(config.steps):
                    total = dp_sgd.gradient_sum(model, *batch, mechanism)
                    made = dp_sgd.noisy_mean(total, mechanism, config.size, random)
                    with torch.no_grad():
                        for name, p in model.named_parameters():
                            p.sub_(made[name], alpha=config.rate)
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            found[f"loss{when}"].append(float(loss.detach()))
            found[f"norm{when}"].append(float(torch.cat([g.flatten() for g in slopes]).double().norm()))
    return found


def _training(
    config: Config, model: nn.Module, samples: data.DataSet, mechanism: dp_sgd.Mechanism, seed: int
) -> dict[str, Any]:
    """The curve of a training, and its end on all samples."""
    curve: list[dict[str, Any]] = []
    train(
        *(model, Process("DP-SGD", config.size, config.rate, mechanism), samples.train, config.epochs, seed),
        progress=lambda epoch: curve.append({"epoch": epoch, **standing(model, samples, config.watched)}),
    )
    return {"curve": curve, "end": standing(model, samples)}

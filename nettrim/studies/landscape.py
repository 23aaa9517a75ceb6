"""The loss landscape of SGD and DP-SGD (paper 002, sections 3.2, 4.1.2 and 4.1.3, Figures 3 to 8, 11 and 17).

"line": copies of one network after k epochs of a first phase are trained on, each by its own process, and the loss is
followed on the straight line between two of them. "around": random directions from a trained network, its norm, the
ratio R and the measured cosine of clipping. "signal": Theorem 3.3, gradient flow on a signal and on noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nettrim.bounds.clipping import clipping_ratio
from nettrim.bounds.signal_noise import SignalNoise, balanced_start, flow, unbalanced_start
from nettrim.privacy.landscape import distance, instability, interpolate, norm, random_directions
from nettrim.studies import data
from nettrim.studies import dp_training as tools
from nettrim.studies.dp_snapshots import restore, snapshots, store
from nettrim.studies.dp_training import DP, OTHER, SGD, Process
from nettrim.studies.landscape_report import plot, tables
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records

__all__ = ["KEY", "PRESETS", "Config", "plot", "run", "tables"]

#: what tells records apart: `first` is the process of the first phase, `pair` what is compared or looked at
KEY = ("part", "first", "k", "pair", "seed", "recipe")

#: not a process: the network after the first phase; the one that SGD makes from other initial values
_AFTER, _ELSEWHERE = "phase 1", "SGD elsewhere"
#: the two ends of a line; the same process twice is two copies with different batches and noise
_LINES = (("SGD", "SGD"), ("DP-SGD", "DP-SGD"), ("SGD", "DP-SGD"), (_AFTER, "SGD"), (_AFTER, "DP-SGD"))
#: the network that is not trained; and the norm of the weights of "signal" at the start
_START, _SCALE = "initial", 1.0


@dataclass(frozen=True)
class Config:
    """Trainings, and what is looked at.

    Attributes
    ----------
    epochs : int
        Of both phases together.
    switches : tuple of int
        Epochs k of the first phase; at 0, copies differ in the order of their batches only.
    firsts : tuple of str
        Processes of the first phase.
    points : int
        Of a line.
    directions : int
    radii : tuple of float
        Distances along the directions; the paper's is 15.
    watched : int
        Training samples that losses are of.
    measured : tuple of int
        Counts of training samples whose per-example gradients R and the cosine are of; R depends on the count.
    data : str
        See `nettrim.studies.data.load`.
    samples : int, optional
        Training samples; default all.
    sgd, dp : Process
    seeds : tuple of int
    device : str
    """

    epochs: int = 30
    switches: tuple[int, ...] = (0, 3, 5, 10, 20)
    firsts: tuple[str, ...] = ("SGD", "DP-SGD")
    points: int = 30
    directions: int = 100
    radii: tuple[float, ...] = (1.0, 5.0, 15.0)
    watched: int = 5000
    measured: tuple[int, ...] = (128, 5000)
    data: str = "mnist"
    samples: int | None = None
    sgd: Process = SGD
    dp: Process = DP
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"

    @property
    def recipe(self) -> str:
        """A short name for everything but the seeds and the device."""
        return hashed({k: v for k, v in asdict(self).items() if k not in ("seeds", "device")})

    def process(self, name: str) -> Process:
        """The process of a name."""
        return self.sgd if name == "SGD" else self.dp


PRESETS = {
    "smoke": Config(
        *(2, (0, 1), ("SGD",), 5, 4, (1.0, 15.0), 100, (10, 50), "synthetic_images"),
        sgd=replace(SGD, size=64),
        dp=Process("DP-SGD", 100, 0.5, DP.mechanism),
        seeds=(0, 1),
    ),
    "cpu": Config(5, (0, 1, 3), ("SGD",), watched=500, measured=(128, 1000), samples=11_000),
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
        Trained weights are kept in it.
    say : callable
        Told what is done.
    """
    for seed in config.seeds:
        about: dict[str, Any] = {"seed": seed, "recipe": config.recipe}
        lines = [
            (first, k, pair)
            for first in config.firsts
            for k in config.switches
            for pair in (*_LINES, *([("SGD", _ELSEWHERE)] if k == 0 else []))
            if records.find(part="line", first=first, k=k, pair=" - ".join(pair), **about) is None
        ]
        around = [
            name
            for name in (_START, "SGD", "DP-SGD")
            if records.find(part="around", first="", k=0, pair=name, **about) is None
        ]
        if lines or around:
            samples = tools.subset(config.data, seed, config.samples)
            watched = samples.train[0][: config.watched], samples.train[1][: config.watched]
        for first, k, pair in lines:
            one, two = (_copy(config, samples, first, k, name, j, seed, folder) for j, name in enumerate(pair))
            losses = interpolate(one, two, *watched, config.points)
            found = {"losses": losses.tolist(), "instability": instability(losses), "distance": distance(one, two)}
            records.add(part="line", first=first, k=k, pair=" - ".join(pair), **about, **found)
            say(f"{first} for {k} epochs, then {' - '.join(pair)}, seed {seed}: {found['instability']:.3f}")
        for name in around:
            records.add(
                part="around", first="", k=0, pair=name, **about, **_around(config, samples, name, seed, folder)
            )
            say(f"around {name}, seed {seed}")
        for name in ("balanced", "unbalanced"):
            if records.find(part="signal", first="", k=0, pair=name, **about) is None:
                records.add(part="signal", first="", k=0, pair=name, **about, **_signal(name, seed))


def _copy(
    config: Config, samples: data.DataSet, first: str, k: int, second: str, copy: int, seed: int, folder: Path
) -> nn.Module:
    """A network after k epochs of one process and the others of another, from the folder if it is there."""
    if second == _ELSEWHERE:
        return _copy(config, samples, first, k, "SGD", 0, seed + OTHER, folder)
    name = f"{first} {k}, {second} copy {copy}, seed {seed}, {config.recipe}.safetensors"
    model = tools.build(seed, config.device)
    if (folder / name).exists():
        return restore(model, folder / name).eval()
    at = snapshots(
        *(folder, config.recipe, config.process(first), samples, config.epochs, config.switches, seed, config.device)
    )
    restore(model, at[k])
    if second == _AFTER:
        return model.eval()
    tools.train(model, config.process(second), samples.train, config.epochs - k, seed + OTHER * (1 + copy))
    store(model, folder / name)
    return model


def _around(config: Config, samples: data.DataSet, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Random directions, norms and clipping of a network: untrained, or trained from the start by one process."""
    initial = tools.build(seed, config.device)
    model: nn.Module = initial
    if name != _START:
        model = _copy(config, samples, config.firsts[0], 0, name, 0, seed, folder)
    x, y = samples.train
    found = random_directions(model, x[: config.watched], y[: config.watched], (0.0, *config.radii), config.directions)
    clipping = [tools.clipping_of(model, (x[:n], y[:n]), config.dp.mechanism.C) for n in config.measured]
    return {
        "radii": found.radii.tolist(),
        "losses": found.losses.tolist(),
        "direction_cosine": found.cosine,
        "norm": norm(model),
        "moved": distance(initial, model),
        "clipping": [asdict(one) for one in clipping],
        **tools.standing(model, samples),
    }


def _signal(name: str, seed: int) -> dict[str, Any]:
    """What gradient flow leaves on the noise, and R at the start, dense and with the noise pruned."""
    model = SignalNoise()
    start = balanced_start if name == "balanced" else unbalanced_start
    W1, W2 = start(model, scale=_SCALE, seed=seed)
    end = flow(model, W1, W2)
    x, y = model.draw(4000, seed)
    kept = np.arange(model.inputs) < len(model.v)
    ratios = [clipping_ratio(model.gradients(W1[:, c], W2, x[:, c], y)) for c in (kept | True, kept)]
    return {"noise": end.noise, "gap": end.gap, "R": ratios[0], "R_pruned": ratios[1]}

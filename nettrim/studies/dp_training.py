"""What the studies of DP-SGD share: two processes of training, measurements of gradients, masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from nettrim.bounds.clipping import Clipping, measure
from nettrim.privacy import dp_sgd
from nettrim.privacy.landscape import mean_loss
from nettrim.sparsity import Unstructured
from nettrim.studies import data, training
from nettrim.studies.victims import Victim, chosen

__all__ = [
    "DP",
    "OTHER",
    "SGD",
    "Process",
    "build",
    "clipping_of",
    "magnitude_masks",
    "standing",
    "steps_of",
    "subset",
    "train",
]

#: added to a seed where the same one would draw the same batches again
OTHER = 1000
#: per-example gradients that are measured at once, and the numbers in them at most
_BLOCK, _NUMBERS = 128, 2e8


@dataclass(frozen=True)
class Process:
    """How a phase of training goes, without momentum.

    Attributes
    ----------
    name : {"SGD", "DP-SGD"}
        Batches in a new order every epoch, and gradients as they are; or Poisson batches and a mechanism.
    size : int
        Of a batch, or expected.
    rate : float
        Of learning.
    mechanism : Mechanism
        Not used by SGD.
    """

    name: str
    size: int
    rate: float
    mechanism: dp_sgd.Mechanism = field(default_factory=dp_sgd.Mechanism)


#: LeNet-5 on MNIST (the paper's Table 1); sigma is that of its Figure 2
SGD = Process("SGD", 128, 0.1)
DP = Process("DP-SGD", 512, 1.0, dp_sgd.Mechanism(1.0, 0.55))


def subset(name: str, seed: int, count: int | None) -> data.DataSet:
    """A data set with `count` of its training samples, drawn by `seed`; with all for None."""
    samples = data.load(name, seed)
    if count is None:
        return samples
    rows = np.random.default_rng(seed).permutation(len(samples.train[0]))[:count]
    x, y = samples.train
    return data.DataSet(f"{name}, {len(rows)}", (x[rows], y[rows]), samples.validation, samples.test)


def build(seed: int, device: str = "cpu") -> nn.Sequential:
    """LeNet-5 with the initial values of a seed; "auto" is a GPU if there is one."""
    return Victim().build(seed, chosen(device))


def train(
    model: nn.Module,
    process: Process,
    train_set: tuple[np.ndarray, np.ndarray],
    epochs: int,
    seed: int,
    masks: training.Masks | None = None,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Train by a process; returns its steps. `progress` is called with each epoch, from 1."""
    if process.name == "SGD":
        batches = training.Batches(*train_set, process.size, seed)
        told = None if progress is None else (lambda epoch, loss: progress(epoch))
        training.sgd(model, batches, epochs, process.rate, 0.0, masks=masks, progress=told)
        return epochs * len(batches)
    drawn = dp_sgd.PoissonBatches(*train_set, process.size, seed)
    return dp_sgd.dp_sgd(model, drawn, epochs, process.rate, process.mechanism, masks, seed, progress=progress)


def steps_of(process: Process, train_set: tuple[np.ndarray, np.ndarray], epochs: int) -> int:
    """Steps of some epochs: SGD leaves out the rest of its samples, and Poisson batches need not add up to them."""
    count = len(train_set[0]) / process.size
    return epochs * (int(count) if process.name == "SGD" else round(count))


def standing(model: nn.Module, samples: data.DataSet, count: int | None = None) -> dict[str, float]:
    """Training loss and test accuracy, each on the first `count` samples or on all."""
    (x, y), (u, v) = ([array[:count] for array in part] for part in (samples.train, samples.test))
    return {"loss": mean_loss(model, x, y), "accuracy": training.accuracy(model, u, v)}


def clipping_of(
    model: nn.Module, train_set: tuple[np.ndarray, np.ndarray], C: float, masks: training.Masks | None = None
) -> Clipping:
    """What clipping does to the gradients of samples, which for pruned networks are those of the kept weights."""
    device, masks = next(model.parameters()).device, masks or {}
    block = max(1, min(_BLOCK, int(_NUMBERS / sum(p.numel() for p in model.parameters()))))

    def blocks() -> Iterator[np.ndarray]:
        x, y = (torch.from_numpy(part) for part in train_set)
        for k in range(0, len(x), block):
            made = dp_sgd.per_example_gradients(model, x[k : k + block].to(device), y[k : k + block].to(device))
            for name, mask in masks.items():
                made[name].mul_(torch.as_tensor(mask).to(device))
            yield torch.cat([g.flatten(1) for g in made.values()], 1).cpu().numpy()

    training_mode = model.training
    model.eval()
    found = measure(blocks(), C)
    model.train(training_mode)
    return found


def magnitude_masks(model: nn.Module, kept: float, seed: int | None = None) -> dict[str, np.ndarray]:
    """For matrices and kernels: True for the fraction `kept` of largest magnitude in each, or, by a seed, for any."""
    rng = None if seed is None else np.random.default_rng(seed)
    masks = {}
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            W = p.detach().cpu().numpy().reshape(len(p), -1)
            scores = np.abs(W) if rng is None else rng.random(W.shape)
            masks[name] = Unstructured(round(kept * W.size)).mask(scores).reshape(p.shape)
    return masks

"""Iterative magnitude pruning: rounds that prune a share of the survivors and train what is left (paper 000, 5.1).

Round 0 trains the dense network. Each further round prunes the smallest weights, 20 % of those that are left in the
paper, and trains the others from the values that they have, so that after n rounds ``k = .8^n`` are kept. Counts are
exact: of D weights, the nearest whole number to ``D (1 - share)^n`` is kept, ties by position. What is pruned stays
pruned, also where a survivor happens to be smaller later. The paper does not say whether weights are compared within a
layer or across all; both can be had.

Only weights of linear and convolution layers are pruned and counted. Biases, and the scales and shifts of norms, are
trained and not pruned, and are in neither the count nor the kept fraction.

Training is stochastic gradients with momentum at a constant rate, with a new optimiser in every round. An epoch's order
of batches comes from the seed and the numbers of the round and the epoch alone, all random numbers of a batch,
dropout's too, from these and its own number, and torch's global generators are put back. So a run goes on from its last
state bit for bit, on the CPU with the same number of threads; on a GPU, not all of torch's kernels repeat themselves.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.privacy.checkpoints import Checkpoint, digest, read, state_digest, write

__all__ = ["Recipe", "Round", "iterative", "kept_count", "next_masks", "prunable"]

#: what is done to a batch of inputs before it is used
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Masks = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How the network is trained and pruned; the defaults are paper 000's for LeNet-5.

    Attributes
    ----------
    rounds : int
        Of pruning, after the dense network.
    share : float
        Of the survivors, pruned in each round, in [0, 1).
    per : {"network", "layer"}
        Whether weights are compared across all layers or within each.
    epochs, retrain : int
        Of the dense network, and of each round.
    rate, momentum : float
    size : int
        Of a batch; what does not fill the last one is left out of the epoch.
    seed : int
        Of the batches' order and of what the network draws.
    """

    rounds: int = 15
    share: float = 0.2
    per: str = "network"
    epochs: int = 20
    retrain: int = 5
    rate: float = 0.05
    momentum: float = 0.9
    size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("epochs", 1), ("retrain", 1), ("size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if not 0 <= self.share < 1:
            raise ValueError(f"share must be in [0, 1); got {self.share!r}")
        if self.per not in ("network", "layer"):
            raise ValueError(f"per must be 'network' or 'layer'; got {self.per!r}")
        if not (0 < self.rate < math.inf and 0 <= self.momentum < 1):
            raise ValueError(f"rate must be positive and momentum in [0, 1); got {self.rate!r} and {self.momentum!r}")


@dataclass(frozen=True)
class Round:
    """A network that has been pruned and trained.

    Attributes
    ----------
    number : int
        0 for the dense one.
    kept, weights : int
        Weights that are left, and all of them.
    masks : dict of str to bool tensor
        For each pruned parameter, True where a weight is left.
    """

    number: int
    kept: int
    weights: int
    masks: Masks


def prunable(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of linear and convolution layers by their names; no bias and nothing of a norm.

    Raises
    ------
    ValueError
        There are none.
    """
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            found[f"{name}.weight".lstrip(".")] = module.weight
    if not found:
        raise ValueError("model has no linear and no convolution layer")
    return found


def kept_count(weights: int, share: float, rounds: int) -> int:
    """The nearest whole number to ``weights (1 - share)^rounds``.

    >>> from nettrim.privacy.iterative import kept_count
    >>> [kept_count(1000, 0.2, n) for n in (0, 1, 2, 15)]
    [1000, 800, 640, 35]
    """
    return round(weights * (1 - share) ** rounds)


@torch.no_grad()
def next_masks(model: nn.Module, masks: Mapping[str, torch.Tensor], number: int, share: float, per: str) -> Masks:
    """Masks of a round: the largest weights among those that are left.

    Parameters
    ----------
    model : nn.Module
    masks : mapping of str to bool tensor
        Of the round before, for each name of `prunable`.
    number : int
        Of the round, from 1.
    share : float
    per : {"network", "layer"}

    Returns
    -------
    dict of str to bool tensor
        `kept_count` of all weights, or of each layer's, are True, and none that was False.
    """
    weights = prunable(model)
    # a pruned weight is below any survivor, also one that is zero
    scores = {name: torch.where(masks[name], p.abs(), -1.0).flatten().cpu() for name, p in weights.items()}
    groups = [list(weights)] if per == "network" else [[name] for name in weights]
    made: Masks = {}
    for names in groups:
        joined = torch.cat([scores[name] for name in names])
        kept = torch.zeros(len(joined), dtype=torch.bool)
        order = torch.argsort(joined, descending=True, stable=True)
        kept[order[: kept_count(len(joined), share, number)]] = True
        for name, part in zip(names, kept.split([len(scores[name]) for name in names]), strict=True):
            made[name] = part.reshape(weights[name].shape).to(weights[name].device)
    return {name: made[name] for name in weights}


def iterative(
    model: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    recipe: Recipe,
    folder: str | os.PathLike[str],
    augment: Augment | None = None,
    progress: Callable[[int, int, float], Any] | None = None,
    written: Callable[[], Any] = lambda: None,
    seconds: float = 60.0,
) -> Iterator[Round]:
    """Train and prune in rounds; whatever is in the folder already is not done again.

    Parameters
    ----------
    model : nn.Module
        As it is before the first epoch. It is changed in place, and in evaluation mode at each round that is given.
    inputs : float32 array, samples first
    labels : (samples,) int64 array
    recipe : Recipe
    folder : path
        Receives a safetensors file for each round, and one for the last state (`nettrim.privacy.checkpoints`). Created
        if it is not there.
    augment : callable, optional
        Makes a batch's inputs from what it is given, and a generator.
    progress : callable, optional
        Told the round, the epoch from 1, and its mean loss.
    written : callable
        Called after each state that was written. What it raises stops the run, which goes on from there.
    seconds : float
        After so long within an epoch, the state is written before its end.

    Yields
    ------
    Round
        With the model as it is after that round; from 0 to ``recipe.rounds``.

    Raises
    ------
    ValueError
        The folder holds another configuration's files, damaged ones, or wrong input.
    FloatingPointError
        The loss is infinite or NaN.
    """
    if len(inputs) != len(labels) or len(inputs) < recipe.size:
        raise ValueError(
            f"inputs must be as many as labels and at least {recipe.size}; got {len(inputs)}, {len(labels)}"
        )
    place, about = Path(folder), _fingerprint(model, inputs, labels, recipe, augment)
    place.mkdir(parents=True, exist_ok=True)
    last = Checkpoint(place / "epoch.safetensors", about, written, seconds)
    run = _Run(model, torch.from_numpy(inputs), torch.from_numpy(labels), recipe, augment, last, progress)
    device = next(model.parameters()).device
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable(model).items()}
    for number in range(recipe.rounds + 1):
        path = place / f"round {number:02d}.safetensors"
        if path.exists():
            parts, _ = read(path, about)
            model.load_state_dict(parts["model"])
            masks = {name: mask.to(device) for name, mask in parts["mask"].items()}
        else:
            masks = next_masks(model, masks, number, recipe.share, recipe.per) if number else masks
            run.train(number, masks)
            write(path, {**about, "round": number}, {"model": model.state_dict(), "mask": masks})
            written()
        model.eval()
        counts = [(int(mask.sum()), mask.numel()) for mask in masks.values()]
        yield Round(number, sum(kept for kept, _ in counts), sum(size for _, size in counts), masks)


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor
    recipe: Recipe
    augment: Augment | None
    last: Checkpoint
    progress: Callable[[int, int, float], Any] | None

    def train(self, number: int, masks: Masks) -> None:
        """The epochs of a round, from where the last state that is in the folder is."""
        recipe = self.recipe
        parameters = dict(self.model.named_parameters())
        optimizer = torch.optim.SGD(parameters.values(), recipe.rate, recipe.momentum)
        done, batch, total = 0, 0, 0.0
        state = self.last.load()
        if state is not None and state[1]["round"] == number:
            parts, where = state
            self.model.load_state_dict(parts["model"])
            done, batch, total = where["epoch"], where["batch"], where["total"]
            for name, value in parts.get("momentum", {}).items():
                optimizer.state[parameters[name]]["momentum_buffer"] = value.to(parameters[name].device)
        for epoch in range(done + 1, (recipe.retrain if number else recipe.epochs) + 1):
            loss = self._epoch(number, epoch, masks, optimizer, batch, total)
            batch, total = 0, 0.0
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} in epoch {epoch} of round {number}: try a smaller rate")
            if self.progress is not None:
                self.progress(number, epoch, loss)
            self._save(masks, optimizer, number, epoch)

    def _epoch(
        self, number: int, epoch: int, masks: Masks, optimizer: torch.optim.Optimizer, first: int, total: float
    ) -> float:
        """The batches of an epoch from `first` on, whose losses before add up to `total`; the mean loss."""
        parameters = dict(self.model.named_parameters())
        zeros = [(parameters[name], ~mask) for name, mask in masks.items()]
        device = next(self.model.parameters()).device
        order = torch.randperm(len(self.inputs), generator=self._random(number, epoch))
        size, losses = self.recipe.size, torch.full((), total, dtype=torch.float64, device=device)
        batches = order[: len(order) // size * size].split(size)
        self.model.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _write(zeros)
            for k, rows in enumerate(batches[first:], first):
                # of each batch by itself, so that one can be the first after an interruption
                random = self._random(number, epoch, k)
                torch.manual_seed(random.initial_seed())
                x = self.inputs[rows] if self.augment is None else self.augment(self.inputs[rows], random)
                loss = nn.functional.cross_entropy(self.model(x.to(device)), self.labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                for p, mask in zeros:
                    # no momentum grows at a weight that is pruned
                    if p.grad is not None:
                        p.grad.masked_fill_(mask, 0)
                optimizer.step()
                _write(zeros)
                losses += loss.detach()
                if self.last.due and k + 1 < len(batches):
                    self._save(masks, optimizer, number, epoch - 1, k + 1, float(losses))
        return float(losses) / len(batches)

    def _random(self, *numbers: int) -> torch.Generator:
        """The generator of a round, an epoch and a batch."""
        name = " ".join(map(str, (self.recipe.seed, *numbers)))
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))

    def _save(
        self,
        masks: Masks,
        optimizer: torch.optim.Optimizer,
        number: int,
        epoch: int,
        batch: int = 0,
        total: float = 0.0,
    ) -> None:
        """The state after an epoch, and some batches of the next one."""
        states = {name: optimizer.state[p].get("momentum_buffer") for name, p in self.model.named_parameters()}
        momenta = {name: value for name, value in states.items() if value is not None}
        parts = {"model": self.model.state_dict(), "mask": masks, "momentum": momenta}
        self.last.save(parts, round=number, epoch=epoch, batch=batch, total=total)


@torch.no_grad()
def _write(zeros: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    for p, mask in zeros:
        p.masked_fill_(mask, 0)


def _fingerprint(
    model: nn.Module, inputs: np.ndarray, labels: np.ndarray, recipe: Recipe, augment: Augment | None
) -> dict[str, Any]:
    """What makes a run: more rounds of the same are the same run."""
    how = {name: value for name, value in asdict(recipe).items() if name != "rounds"}
    return {
        **how,
        "augment": getattr(augment, "__qualname__", None),
        "start": state_digest(model),
        "data": digest(inputs, labels),
    }

"""Model inversion: images whose representation at a layer is a given one (Mahendran and Vedaldi 2015; paper 000, 5.2).

The attacker knows the network and Phi(x), what a layer makes of an image x, and looks for the image z that minimises

    ||S (Phi(x) - Phi(z))||^2 / ||S Phi(x)||^2 + weight * TV(z),   low <= z <= high,

with the isotropic total variation ``TV(z) = sum over pixels of sqrt(dx^2 + dy^2 + 1e-8)``, dx and dy the differences to
the next pixel in each direction (zero beyond the edge), each channel on its own. S is the identity for the plain
attacker.

How it moves. Adam, with a rate that falls to zero by a cosine. An iterate that leaves [low, high] is put back after the
step. The network never sees a clamped image, so that a pixel at an end has the gradient of a free one and leaves it as
soon as the gradient points inside. (An objective of ``clamp(z)`` has no gradient beyond the ends: what is there once
stays there, which looks like privacy and is a fault of the attack.) Starts are noise around grey, or around an image
that the attacker has, such as the mean of public ones.

What a mask adds. The weights are public, so that every attacker has the zeros; the plain objective makes no use of
them. The aware attacker does, at linear and convolution layers: S is `nettrim.privacy.layers.whitening`, with which a
mismatch is measured by the smallest change of the layer's input that explains it. No direction is weighed that the
surviving weights do not let through. For a convolution that is done for the kernels, at each position by itself. The
bias, which carries nothing of the image, is left out of the scale ``||S Phi(x)||``.

Neither attacker is the strongest there can be, and what none of them finds may still be there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from nettrim.privacy.checkpoints import Checkpoint, digest, state_digest
from nettrim.privacy.layers import evaluation, module_of, represent, whitening

__all__ = ["Attack", "Inverted", "choose_weight", "invert", "neighbours", "total_variation"]

#: under the root of the total variation, which then has a gradient everywhere
SMOOTHING = 1e-8


@dataclass(frozen=True)
class Attack:
    """How an image is looked for.

    Attributes
    ----------
    weight : float
        Of the total variation: lambda.
    iterations : int
    rate : float
        Of Adam at the beginning, in parts of ``high - low``.
    restarts : int
        Starts from other noise; the best by its objective is taken.
    spread : float
        Standard deviation of the noise around the start, in parts of ``high - low``.
    low, high : float
        Range of the pixels.
    aware : bool
        Whether mismatches are measured through the layer's surviving weights; see above.
    seed : int
        Of the noise.
    """

    weight: float = 1e-3
    iterations: int = 400
    rate: float = 0.05
    restarts: int = 4
    spread: float = 0.1
    low: float = 0.0
    high: float = 1.0
    aware: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("restarts", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        for name in ("weight", "spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0; got {getattr(self, name)!r}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be positive; got {self.rate!r}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low must be below high, both finite; got {self.low!r} and {self.high!r}")


@dataclass(frozen=True)
class Inverted:
    """Images that were found, and how well each fits.

    Attributes
    ----------
    images : (B, C, H, W) tensor
    objective : (B,) tensor
        What was minimised.
    feature_error : (B,) tensor
        ``||Phi(x) - Phi(z)||^2 / ||Phi(x)||^2``, without S, of any attacker.
    """

    images: torch.Tensor
    objective: torch.Tensor
    feature_error: torch.Tensor


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Isotropic total variation of each image, the sum over its channels, smoothed by `SMOOTHING`.

    Parameters
    ----------
    images : (B, C, H, W) tensor

    Returns
    -------
    (B,) tensor
    """
    squares = torch.full_like(images, SMOOTHING)
    squares[..., :-1, :] += (images[..., 1:, :] - images[..., :-1, :]).square()
    squares[..., :-1] += (images[..., 1:] - images[..., :-1]).square()
    return squares.sqrt().flatten(1).sum(1)


def invert(
    model: nn.Module,
    layer: str,
    target: torch.Tensor,
    shape: Sequence[int],
    attack: Attack,
    around: torch.Tensor | None = None,
    checkpoint: Checkpoint | None = None,
) -> Inverted:
    """Look for images whose representation is the target, from several starts.

    The model is run in evaluation mode, so that batch norms use what they have learned and dropout is off; its modes
    are put back. Gradients are taken for the images only: no parameter and no gradient of the model changes. A start's
    noise is the same for all images, so that what is found for an image does not depend on the others, up to rounding.

    Parameters
    ----------
    model : nn.Module
    layer : str
        Name of a module, as in ``named_modules()``; a linear or a convolution module for an aware attack.
    target : (B, ...) tensor
        Phi(x), as `represent` gives it in evaluation mode.
    shape : (C, H, W)
        Of an image.
    attack : Attack
    around : (C, H, W) or (B, C, H, W) tensor, optional
        Where the starts are, one image for all or one for each, as of `neighbours`. Default grey, the middle of the
        range.
    checkpoint : Checkpoint, optional
        Keeps the state of the search, from which the same call goes on.

    Returns
    -------
    Inverted
        Of each image, the start with the smallest objective: the attacker does not know how near it is to x.

    Raises
    ------
    ValueError
        There is no such layer; its output for such images is not of the target's shape; `around` is of another shape;
        the checkpoint is of another search.
    TypeError
        An aware attack at a layer of another kind.
    FloatingPointError
        The objective is infinite or NaN.
    """
    shape, count, device = tuple(shape), len(target), target.device
    random = torch.Generator().manual_seed(attack.seed)
    noise = torch.randn(attack.restarts, 1, *shape, generator=random).to(target)
    grey = torch.full(shape, (attack.low + attack.high) / 2)
    start = (grey if around is None else around).to(target)
    if tuple(start.shape) not in (shape, (count, *shape)):
        raise ValueError(f"around must be of shape {shape} or {(count, *shape)}; got {tuple(start.shape)}")
    width = attack.high - attack.low
    z = start + attack.spread * width * noise
    z = z.expand(-1, count, *shape).flatten(0, 1).clamp(attack.low, attack.high).clone().requires_grad_()
    wanted = target.detach().repeat(attack.restarts, *(1 for _ in target.shape[1:]))
    with evaluation(model):
        distance = _Distance(model, layer, wanted, attack.aware, tuple(represent(model, layer, z[:1].detach()).shape))
        optimizer = torch.optim.Adam([z], attack.rate * width)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, attack.iterations)
        keeper = (
            None if checkpoint is None else _Keeper(checkpoint, model, layer, target, attack, z, optimizer, schedule)
        )
        for k in range(0 if keeper is None else keeper.load(), attack.iterations):
            value = distance(represent(model, layer, z)) + attack.weight * total_variation(z)
            (z.grad,) = torch.autograd.grad(value.sum(), z)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                z.clamp_(attack.low, attack.high)
            if keeper is not None and keeper.checkpoint.due:
                keeper.save(k + 1)
        with torch.no_grad():
            made = represent(model, layer, z)
            objective = distance(made) + attack.weight * total_variation(z)
    if not bool(objective.isfinite().all()):
        raise FloatingPointError("the objective is infinite or NaN: try a smaller rate")
    objective = objective.reshape(attack.restarts, count)
    best = objective.argmin(0)
    rows = best * count + torch.arange(count, device=device)
    images = z.detach()[rows]
    return Inverted(images, objective.gather(0, best[None])[0], _relative(made[rows], target))


def choose_weight(
    model: nn.Module,
    layer: str,
    images: torch.Tensor,
    attack: Attack,
    weights: Sequence[float],
    around: torch.Tensor | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Attack, list[float]]:
    """The weight of the total variation with the smallest mean error of pixels (in decibels, the largest mean PSNR).

    It is for images that the attacker has, and not for those whose attack is reported: a weight that is chosen on those
    would know the answer.

    Parameters
    ----------
    model : nn.Module
    layer : str
        As of `invert`.
    images : (B, C, H, W) tensor
    attack : Attack
        All but its weight is used.
    weights : sequence of float
        To choose from; at least one.
    around : (C, H, W) or (B, C, H, W) tensor, optional
        As of `invert`.
    checkpoint : Checkpoint, optional
        As of `invert`; for one weight.

    Returns
    -------
    attack : Attack
        With the chosen weight.
    psnr : list of float
        Mean PSNR, in dB, with each of the weights.

    Raises
    ------
    ValueError, TypeError, FloatingPointError
        As `invert`; no weights; several with a checkpoint.
    """
    if not len(weights):
        raise ValueError("weights must have at least one number")
    if checkpoint is not None and len(weights) > 1:
        raise ValueError(f"weights must be one with a checkpoint, which is of one search; got {len(weights)}")
    with torch.no_grad(), evaluation(model):
        target = represent(model, layer, images)
    found = []
    for weight in weights:
        tried = replace(attack, weight=float(weight))
        made = invert(model, layer, target, images.shape[1:], tried, around, checkpoint)
        squares = (made.images - images).double().flatten(1).square().mean(1) / (attack.high - attack.low) ** 2
        found.append(float(-10 * squares.clamp_min(1e-10).log10().mean()))
    best = max(range(len(found)), key=found.__getitem__)
    return replace(attack, weight=float(weights[best])), found


def neighbours(
    model: nn.Module, layer: str, target: torch.Tensor, images: torch.Tensor, count: int = 10, aware: bool = False
) -> torch.Tensor:
    """For each target the mean of those public images whose representations are nearest: a start, and a rival.

    Parameters
    ----------
    model : nn.Module
    layer : str
        As of `invert`.
    target : (B, ...) tensor
        Phi(x).
    images : (P, C, H, W) tensor
        That the attacker has; none of those that are looked for.
    count : int
        How many are nearest.
    aware : bool
        Whether distances are measured after `nettrim.privacy.layers.whitening`.

    Returns
    -------
    (B, C, H, W) tensor

    Raises
    ------
    ValueError, TypeError
        As `invert`; `count` is not between 1 and P.
    """
    if not 1 <= count <= len(images):
        raise ValueError(f"count must be between 1 and the {len(images)} images; got {count!r}")
    with torch.no_grad(), evaluation(model):
        public = represent(model, layer, images)
        distance = _Distance(model, layer, target, aware, tuple(public.shape))
        found = torch.cdist(distance.of(target).flatten(1), distance.of(public).flatten(1))
        return torch.stack([images[rows].mean(0) for rows in found.topk(count, largest=False).indices])


class _Keeper:
    """What goes into a checkpoint of a search."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        layer: str,
        target: torch.Tensor,
        attack: Attack,
        z: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ):
        self.z, self.optimizer, self.schedule = z, optimizer, schedule
        about = {
            "layer": layer,
            "attack": asdict(attack),
            "model": state_digest(model),
            "target": digest(target.cpu().numpy()),
            "start": digest(z.detach().cpu().numpy()),
        }
        self.checkpoint = replace(checkpoint, about={**checkpoint.about, **about})

    def load(self) -> int:
        """Iterations that are done."""
        found = self.checkpoint.load()
        if found is None:
            return 0
        parts, where = found
        with torch.no_grad():
            self.z.copy_(parts["images"]["z"])
        moments = {name: value.to(self.z.device) if value.ndim else value for name, value in parts["adam"].items()}
        self.optimizer.state[self.z].update(moments)
        self.optimizer.param_groups[0]["lr"] = where["rate"]
        self.schedule.load_state_dict(where["schedule"])
        return where["iteration"]

    def save(self, iteration: int) -> None:
        parts = {"images": {"z": self.z}, "adam": self.optimizer.state[self.z]}
        rate, schedule = self.optimizer.param_groups[0]["lr"], self.schedule.state_dict()
        self.checkpoint.save(parts, iteration=iteration, rate=rate, schedule=schedule)


class _Distance:
    """||S (Phi(x) - Phi(z))||^2 / ||S Phi(x)||^2 for each row."""

    def __init__(self, model: nn.Module, layer: str, wanted: torch.Tensor, aware: bool, one: tuple[int, ...]):
        if one[1:] != tuple(wanted.shape[1:]):
            raise ValueError(f"target must be (B, {', '.join(map(str, one[1:]))}), as {layer!r} gives for such images")
        self.wanted, self.root, size = wanted, None, wanted
        if aware:
            module = module_of(model, layer)
            # a linear layer's outputs are the last axis, a convolution's channels the first after the images
            self.axis = wanted.ndim - 1 if isinstance(module, nn.Linear) else 1
            self.root = whitening(model, layer).to(wanted)
            if isinstance(module.bias, torch.Tensor):
                bias = module.bias.detach().to(wanted)
                size = wanted - bias.reshape(-1, *(1 for _ in wanted.shape[self.axis + 1 :]))
        self.scale = self.of(size).flatten(1).square().sum(1).clamp_min(1e-24)

    def of(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.root is None else torch.tensordot(values, self.root, ([self.axis], [1]))

    def __call__(self, made: torch.Tensor) -> torch.Tensor:
        return self.of(self.wanted - made).flatten(1).square().sum(1) / self.scale


def _relative(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    error = (made - wanted).double().flatten(1).square().sum(1)
    return error / wanted.double().flatten(1).square().sum(1).clamp_min(1e-24)

"""DP-SGD for dense and pruned networks: stochastic gradients with clipping and noise as two separate switches.

A step, of the examples of a batch with per-example gradients g_i and masks m (1 where a weight is kept):

    g_i <- m g_i                              masked BEFORE it is clipped: by the norm of what is left
    g_i <- g_i min(1, C / ||g_i||)            clipped: one norm over all parameters
    g   <- (sum_i g_i + sigma C m z) / B      noisy: z standard normal, B the EXPECTED size of a batch

(Abadi et al. 2016, Algorithm 1). Watson et al., "Inference and Interference", section 2.1, print a covariance C sigma^2
of the noise; the standard deviation is sigma C, hence the covariance (sigma C)^2. Batches are drawn by Poisson
sampling, which is what the accountant assumes, and are divided by the size that is expected, since the actual one is
private.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from nettrim.privacy.checkpoints import Checkpoint, digest, generators, put_back, state_digest
from nettrim.privacy.sampling import PoissonBatches, seeded

__all__ = [
    "Mechanism",
    "PoissonBatches",
    "clip_factors",
    "dp_sgd",
    "example_norms",
    "gradient_sum",
    "noisy_mean",
    "per_example_gradients",
    "refuse_batch_norm",
    "seeded",
]

#: examples whose gradients are held at once: on a CPU, more are slower
MICRO = 128
#: clipped gradients stay below C where norms and products are rounded to float32
_BELOW = 1 - 1e-5

#: a scalar of outputs and targets, the mean over the examples
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Gradients = dict[str, torch.Tensor]
#: for names of parameters, False where a weight is pruned
Masks = Mapping[str, "np.ndarray | torch.Tensor"]


@dataclass(frozen=True)
class Mechanism:
    """What is done to gradients: four modes by two switches.

    Attributes
    ----------
    C : float
        Largest norm of an example's gradient if it is clipped, and the unit of the noise.
    sigma : float
        Standard deviation of the noise in the SUM of gradients, in units of C.
    clipped, noisy : bool
        Only both together are private.

    Raises
    ------
    ValueError
        C is not positive, or sigma is negative.
    """

    C: float = 1.0
    sigma: float = 1.0
    clipped: bool = True
    noisy: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.C < math.inf:
            raise ValueError(f"C must be positive and finite; got {self.C!r}")
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be finite and at least 0; got {self.sigma!r}")

    @property
    def name(self) -> str:
        """SGD, clipped SGD, noisy SGD or DP-SGD."""
        return {(0, 0): "SGD", (1, 0): "clipped SGD", (0, 1): "noisy SGD", (1, 1): "DP-SGD"}[self.clipped, self.noisy]

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in the sum of gradients, sigma C or 0."""
        return self.sigma * self.C if self.noisy else 0.0


def refuse_batch_norm(model: nn.Module) -> None:
    """ValueError, with its name, where a layer's output for one example depends on others."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"model must be without batch norms, which mix the examples of a batch; got {name or 'model'} "
                f"({type(module).__name__}): use group norms"
            )


def per_example_gradients(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, loss: Loss = nn.functional.cross_entropy
) -> Gradients:
    """The gradient of each example's own loss.

    Parameters
    ----------
    model : nn.Module
        Without batch norms. Parameters that require no gradient are left out. Dropout, in training mode, draws from
        torch's global generator.
    inputs, targets : tensor (B, ...)
        On the device of the model.
    loss : callable
        ``loss(outputs, targets)``, a scalar; called with one example at a time.

    Returns
    -------
    dict of str to tensor (B, ...)
        For each parameter's name, an array of its shape for each example.

    Raises
    ------
    ValueError
        A batch norm, named.
    """
    refuse_batch_norm(model)
    fixed = {**dict(model.named_buffers()), **{n: p for n, p in model.named_parameters() if not p.requires_grad}}

    def of_one(parameters: Gradients, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(functional_call(model, {**fixed, **parameters}, (x[None],)), y[None])

    values = {name: p.detach() for name, p in _trainable(model).items()}
    return vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different")(values, inputs, targets)


def example_norms(gradients: Gradients) -> torch.Tensor:
    """Euclidean norm of each example's gradient over all parameters, (B,) float64."""
    total: torch.Tensor | float = 0.0
    for g in gradients.values():
        # row by row in the gradients' type, which is fast, and then in float64: sums of a whole layer would be inexact
        rows = g.flatten(2) if g.ndim > 2 else g.flatten(1)[:, None]
        total = total + torch.linalg.vector_norm(rows, dim=2).double().square().sum(1)
    return torch.as_tensor(total).sqrt()


def clip_factors(norms: torch.Tensor, C: float) -> torch.Tensor:
    """``min(1, C / norm)`` for each norm, a little less where it is below 1, so that rounded norms are at most C."""
    return torch.where(norms > C * _BELOW, C * _BELOW / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0)


def gradient_sum(
    model: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    mechanism: Mechanism,
    masks: Masks | None = None,
    micro: int = MICRO,
    loss: Loss = nn.functional.cross_entropy,
) -> Gradients:
    """The sum of the examples' gradients, masked and then, if that is on, clipped.

    Parameters
    ----------
    model : nn.Module
        Without batch norms.
    inputs, targets : tensor (B, ...)
        B may be 0.
    mechanism : Mechanism
        Its noise is not added here.
    masks : mapping of str to bool array, optional
        For names of parameters, of their shapes: False where a weight is pruned.
    micro : int
        Examples whose gradients are held in memory at once.
    loss : callable
        ``loss(outputs, targets)``, the mean over the examples.

    Returns
    -------
    dict of str to tensor
        Of the parameters' shapes.

    Raises
    ------
    ValueError
        A batch norm; a mask of no parameter, or of another shape or dtype than said; `micro` is not positive.
    """
    refuse_batch_norm(model)
    if micro < 1:
        raise ValueError(f"micro must be at least 1; got {micro!r}")
    kept = _checked(model, masks)
    parameters = _trainable(model)
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    for k in range(0, len(inputs), micro):
        x, y = inputs[k : k + micro], targets[k : k + micro]
        if mechanism.clipped:
            made = per_example_gradients(model, x, y, loss)
            for name, mask in kept.items():
                made[name].mul_(mask)
            factors = clip_factors(example_norms(made), mechanism.C)
            for name, g in made.items():
                total[name] += torch.tensordot(factors.to(g.dtype), g, dims=1)
        else:
            # nothing is done to the examples one by one, so that their sum's gradient is enough
            found = torch.autograd.grad(loss(model(x), y) * len(x), list(parameters.values()), materialize_grads=True)
            for name, g in zip(parameters, found, strict=True):
                total[name] += g * kept[name] if name in kept else g
    return total


def noisy_mean(
    total: Gradients,
    mechanism: Mechanism,
    expected: int,
    generator: torch.Generator,
    masks: Masks | None = None,
) -> Gradients:
    """A sum of gradients with noise, divided by the expected size of a batch.

    Parameters
    ----------
    total : dict of str to tensor
        As of `gradient_sum`.
    mechanism : Mechanism
    expected : int
        Not the size that the batch has, which is private.
    generator : torch.Generator
        Of the CPU, so that the noise is the same on every device.
    masks : mapping of str to bool array, optional
        The noise is zero where they are False.

    Returns
    -------
    dict of str to tensor
    """
    made = {}
    for name, g in total.items():
        if mechanism.deviation:
            noise = torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device) * mechanism.deviation
            if masks and name in masks:
                noise.mul_(torch.as_tensor(masks[name]).to(g.device))
            g = g + noise
        made[name] = g / expected
    return made


def dp_sgd(
    model: nn.Module,
    batches: PoissonBatches,
    epochs: int,
    rate: float,
    mechanism: Mechanism,
    masks: Masks | None = None,
    seed: int | torch.Generator = 0,
    micro: int = MICRO,
    loss: Loss = nn.functional.cross_entropy,
    progress: Callable[[int], object] | None = None,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Train without momentum, each step by `gradient_sum` and `noisy_mean`.

    Parameters
    ----------
    model : nn.Module
        Without batch norms. Left in evaluation mode; pruned weights are set to zero, and stay there exactly.
    batches : PoissonBatches
        Moved to the device of the model's first parameter.
    epochs : int
    rate : float
        Of learning; the sampling rate is that of `batches`.
    mechanism : Mechanism
    masks : mapping of str to bool array, optional
        For names of parameters, of their shapes: False where a weight is pruned.
    seed : int or torch.Generator
        Of the noise. A generator goes on from call to call.
    micro : int
        Examples whose gradients are held in memory at once.
    loss : callable
        ``loss(outputs, targets)``, the mean over the examples.
    progress : callable, optional
        Called with each epoch that is done, from 1.
    checkpoint : Checkpoint, optional
        Keeps the state of this training, from which the same call goes on. The states of torch's global generators,
        which dropout draws from, are kept with it and put back.

    Returns
    -------
    int
        Steps that were taken, which `epsilon` asks for.

    Raises
    ------
    ValueError
        As `gradient_sum`; `rate` is not positive; the checkpoint is of another training.
    FloatingPointError
        A weight is infinite or NaN at the end of an epoch.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be positive and finite; got {rate!r}")
    generator = seed if isinstance(seed, torch.Generator) else seeded(seed, "noise")
    kept, parameters, steps = _checked(model, masks), _trainable(model), 0
    device = next(model.parameters()).device
    keeper = None if checkpoint is None else _Keeper(checkpoint, model, batches, generator, rate, mechanism, kept)
    done, steps = (0, 0) if keeper is None else keeper.load()
    model.train()
    with torch.no_grad():
        for name, mask in kept.items():
            # not multiplied: a weight that is not finite would stay
            parameters[name].masked_fill_(~mask, 0)
    for epoch in range(done + 1, epochs + 1):
        for x, y in batches:
            total = gradient_sum(model, x.to(device), y.to(device), mechanism, kept, micro, loss)
            made = noisy_mean(total, mechanism, batches.expected, generator, kept)
            with torch.no_grad():
                for name, p in parameters.items():
                    p.sub_(made[name], alpha=rate)
            steps += 1
            if keeper is not None and keeper.checkpoint.due and batches.state()[0]:
                keeper.save(epoch - 1, steps)
        if not all(torch.isfinite(p).all() for p in parameters.values()):
            raise FloatingPointError(f"weights are infinite or NaN in epoch {epoch}: try a smaller rate")
        if progress is not None:
            progress(epoch)
        if keeper is not None:
            keeper.save(epoch, steps)
    model.eval()
    return steps


class _Keeper:
    """What goes into a checkpoint of private training."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        batches: PoissonBatches,
        generator: torch.Generator,
        rate: float,
        mechanism: Mechanism,
        masks: Gradients,
    ):
        self.model, self.batches, self.generator = model, batches, generator
        self.device = next(model.parameters()).device
        about = {
            "rate": rate,
            "mechanism": asdict(mechanism),
            "start": state_digest(model),
            "masks": digest(*(mask.cpu().numpy() for mask in masks.values())),
            "expected": batches.expected,
            "data": digest(batches.inputs, batches.labels),
            # of the streams as they are given
            "random": digest(batches.state()[1]["now"].numpy(), generator.get_state().numpy()),
        }
        self.checkpoint = replace(checkpoint, about={**checkpoint.about, **about})

    def load(self) -> tuple[int, int]:
        """Epochs and steps that are done."""
        found = self.checkpoint.load()
        if found is None:
            return 0, 0
        parts, where = found
        self.model.load_state_dict(parts["model"])
        self.batches.go_on(where["batch"], parts["batches"])
        self.generator.set_state(parts["noise"]["now"])
        put_back(parts["random"], self.device)
        return where["epoch"], where["steps"]

    def save(self, epoch: int, steps: int) -> None:
        batch, states = self.batches.state()
        parts = {
            "model": self.model.state_dict(),
            "batches": states,
            "noise": {"now": self.generator.get_state()},
            "random": generators(self.device),
        }
        self.checkpoint.save(parts, epoch=epoch, batch=batch, steps=steps)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _checked(model: nn.Module, masks: Masks | None) -> dict[str, torch.Tensor]:
    """Masks as bool tensors on the parameters' device."""
    parameters, kept = _trainable(model), {}
    for name, given in (masks or {}).items():
        if name not in parameters:
            raise ValueError(f"masks must be for parameters, {', '.join(parameters)}; got {name!r}")
        mask, p = torch.as_tensor(given), parameters[name]
        if mask.dtype != torch.bool or mask.shape != p.shape:
            raise ValueError(
                f"the mask of {name} must be bool of shape {tuple(p.shape)}; "
                f"got {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
            )
        kept[name] = mask.to(p.device)
    return kept

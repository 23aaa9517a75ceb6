"""The networks that the studies of privacy attack: by name, with the layers that are looked behind, on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nettrim.studies import models
from nettrim.studies.batches import Augment, flipped_and_shifted

__all__ = ["Victim", "chosen", "exact"]

#: the layers that paper 000 attacks, by its names, as modules of `nettrim.studies.models.lenet5` and `resnet18`:
#: "Convi-j" is the j-th group of the i-th block, whose output is that of a basic block, after its ReLU
_LAYERS = {
    "lenet5": {"conv1": "0", "conv2": "3", "fc1": "7", "fc2": "9", "fc3": "11"},
    "resnet18": {"conv2-1": "3", "conv2-2": "4", "conv3-1": "5", "conv3-2": "6", "conv4-1": "7"},
}


@dataclass(frozen=True)
class Victim:
    """A network that is trained, pruned and attacked.

    Attributes
    ----------
    network : {"lenet5", "resnet18"}
        LeNet-5 for 28 x 28 images, or ResNet-18 with a CIFAR stem for 32 x 32 images in colours.
    width : int
        Of ResNet-18; 64 has 11,173,962 parameters.
    norm : {"batch", "group"}
        Of ResNet-18. Batch norms mix the samples of a batch, so that nothing can be measured of single samples.

    Raises
    ------
    ValueError
        Another network, width or norm.
    """

    network: str = "lenet5"
    width: int = 64
    norm: str = "batch"

    def __post_init__(self) -> None:
        if self.network not in _LAYERS:
            raise ValueError(f"network must be one of {', '.join(_LAYERS)}; got {self.network!r}")
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"width must be a whole number of at least 1; got {self.width!r}")
        if self.norm not in ("batch", "group"):
            raise ValueError(f"norm must be 'batch' or 'group'; got {self.norm!r}")

    @property
    def title(self) -> str:
        """For people, and for names of files."""
        return "LeNet-5" if self.network == "lenet5" else f"ResNet-18 of width {self.width}, {self.norm} norms"

    @property
    def layers(self) -> dict[str, str]:
        """Names of modules by the paper's names of the layers, the first ones first."""
        return _LAYERS[self.network]

    @property
    def augment(self) -> Augment | None:
        """What is done to images before they are trained on: colours are mirrored and shifted, digits are not."""
        return None if self.network == "lenet5" else flipped_and_shifted

    def build(self, seed: int, device: torch.device | str = "cpu") -> nn.Sequential:
        """The network with the initial values of a seed, which are the same on every device."""
        torch.manual_seed(seed)
        model = models.lenet5() if self.network == "lenet5" else models.resnet18(self.width, self.norm)
        return model.to(device)


def chosen(device: str) -> torch.device:
    """A device by its name; "auto" is a GPU if there is one.

    Raises
    ------
    ValueError
        No such device, or torch finds no GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch finds no GPU; 'auto' takes one if there is one")
    return found


@contextmanager
def exact() -> Iterator[None]:
    """Context in which cuDNN rounds as float32 does and repeats itself; on the CPU nothing changes."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before

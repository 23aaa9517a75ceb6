"""The networks of the studies, untrained."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

__all__ = [
    "Encoder",
    "cifar_convnet",
    "fully_connected",
    "lenet5",
    "lenet_300_100",
    "net_trim_lenet",
    "resnet18",
    "vgg16",
]


def fully_connected(sizes: tuple[int, ...] = (784, 300, 1000, 100, 10), dropout: float = 0.5) -> nn.Sequential:
    """A ReLU network, with dropout after each hidden layer if its rate is not 0; Net-Trim's is 784-300-1000-100-10."""
    parts: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes[:-1]):
        parts += [nn.Linear(inputs, outputs), nn.ReLU(), *_dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(sizes[-2], sizes[-1]))


def lenet_300_100(dropout: float = 0.0) -> nn.Sequential:
    """LeNet-300-100 with ReLUs, 784-300-100-10: 266,610 weights and biases (LeCun et al. 1998)."""
    return fully_connected((784, 300, 100, 10), dropout)


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []


def lenet5(dropout: float = 0.0) -> nn.Sequential:
    """LeNet-5 with ReLUs and maximum pooling, for 28 x 28 images: 61,706 weights and biases.

    Dropout, if its rate is not 0, comes after the hidden layers that are fully connected.
    """
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), *fully_connected((400, 120, 84, 10), dropout)),
    )


def net_trim_lenet(hidden: int = 512, dropout: float = 0.0) -> nn.Sequential:
    """The wider LeNet of Net-Trim's paper: 32 and 64 kernels of 5 x 5, padded, `hidden` units; for 28 x 28 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *fully_connected((3136, hidden, 10), dropout),
    )


def cifar_convnet(channels: int = 64, hidden: tuple[int, ...] = (384, 192)) -> nn.Sequential:
    """Two 5 x 5 convolutions, each with a ReLU and a pooling, and hidden layers, for 32 x 32 images in colour.

    The defaults are those of the network that TensorFlow's CIFAR-10 tutorial trains, less its normalisations of local
    responses. Net-Trim's paper describes its own only in a supplement that is not at hand.
    """
    return nn.Sequential(
        *(nn.Conv2d(3, channels, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(channels, channels, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *fully_connected((64 * channels, *hidden, 10), 0.0),
    )


#: output channels of VGG-16's convolutions, stage by stage (Simonyan & Zisserman 2015, Table 1, D)
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(classes: int = 10, width: float = 1.0, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    """VGG-16 for 32 x 32 images: 13 convolutions, then 4096, 4096 and 1000 hidden units and the head.

    The hidden units are those of "When are neural pruning approximation bounds useful?" (2020), appendix B.3. That
    the 1000, ImageNet's classes, are followed by a ReLU as the others are, and the batch norms, with which it learns
    from random weights, are our choice: the paper says nothing of either. After five poolings one pixel of
    512 channels is left.

    Parameters
    ----------
    classes : int
        Outputs of the head.
    width : float
        Times the channels and the hidden units, rounded, at least one of each.
    norm : bool
        Whether each convolution, then without a bias, is followed by a batch norm.
    dropout : float
        Rate after the hidden layers, as far as they are fully connected.

    Returns
    -------
    nn.Sequential

    Raises
    ------
    ValueError
        `width` is not positive.
    """
    if not width > 0:
        raise ValueError(f"width must be a positive number; got {width!r}")

    def scaled(count: int) -> int:
        return max(1, round(width * count))

    parts: list[nn.Module] = []
    channels = 3
    for stage in _VGG16:
        for outputs in map(scaled, stage):
            parts.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not norm))
            parts += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
            channels = outputs
        parts.append(nn.MaxPool2d(2))
    sizes = (channels, *map(scaled, (4096, 4096, 1000)), classes)
    return nn.Sequential(*parts, *fully_connected(sizes, dropout))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and the input added (He et al. 2016, Figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Any):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of the block."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(width: int = 64, norm: str = "batch") -> nn.Sequential:
    """ResNet-18 for 32 x 32 images: a 3 x 3 stem without pooling. Width 64 has 11,173,962 parameters.

    Parameters
    ----------
    width : int
        Channels of the first stage; they double from each of the four to the next.
    norm : {"batch", "group"}
        Batch norms, or group norms of at most 32 groups.
    """
    if norm not in ("batch", "group"):
        raise ValueError(f'norm must be "batch" or "group"; got {norm!r}')

    def make(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(min(32, channels), channels)

    parts: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), make(width), nn.ReLU()]
    channels = width
    for stage in range(4):
        for block in range(2):
            outputs = width << stage
            parts.append(_Block(channels, outputs, 2 if stage > 0 and block == 0 else 1, make))
            channels = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Encoder(nn.Module):
    """A transformer encoder that classifies sequences: projection, learned positions, layers, mean, classifier.

    Parameters
    ----------
    activation : {"relu", "gelu"}
        Of the feed-forward parts.
    features, steps : int
        Of the sequences, (B, steps, features).
    width, heads, hidden, layers, classes : int
    dropout : float
    """

    def __init__(
        self,
        activation: str = "relu",
        features: int = 28,
        steps: int = 28,
        width: int = 64,
        heads: int = 4,
        hidden: int = 256,
        layers: int = 2,
        classes: int = 10,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.project = nn.Linear(features, width)
        self.positions = nn.Parameter(0.02 * torch.randn(steps, width))
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, activation, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.classify = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes)."""
        return self.classify(self.encoder(self.project(x) + self.positions).mean(1))

"""The networks of the studies, untrained."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

__all__ = ["Encoder", "fully_connected", "lenet5", "resnet18"]


def fully_connected(sizes: tuple[int, ...] = (784, 300, 1000, 100, 10), dropout: float = 0.5) -> nn.Sequential:
    """A ReLU network with dropout after each hidden layer; Net-Trim's is 784-300-1000-100-10."""
    parts: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes[:-1]):
        parts += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(sizes[-2], sizes[-1]))


def lenet5() -> nn.Sequential:
    """LeNet-5 with ReLUs and maximum pooling, for 28 x 28 images: 61,706 weights and biases."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


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

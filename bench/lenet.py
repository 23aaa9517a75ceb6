"""A LeNet-5 trained on MNIST with PyTorch, whose convolutions bench/convolution.py prunes.

python bench/lenet.py     trains (some minutes) and prints the test accuracy; the weights go to bench/cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mnist import images
from torch import nn

CACHE = Path(__file__).parent / "cache" / "lenet.npz"
EPOCHS, BATCH, RATE, SEED = 6, 128, 2e-3, 1


def model() -> nn.Sequential:
    """61,706 weights: two convolutions with pooling, three dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    X, y = images(split)
    return torch.from_numpy(X.reshape(-1, 1, 28, 28).copy()), torch.from_numpy(y)


def accuracy(net: nn.Module) -> float:
    """On the 10000 test images."""
    X, y = tensors("test")
    net.eval()
    with torch.no_grad():
        return float((torch.cat([net(x) for x in X.split(1000)]).argmax(1) == y).float().mean())


def train() -> nn.Sequential:
    """Adam with a rate that decays to zero; seeded."""
    torch.manual_seed(SEED)
    net, (X, y) = model(), tensors("train")
    steps = EPOCHS * (len(X) // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(X))[: len(X) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}  test accuracy {accuracy(net):.4f}", flush=True)
        net.train()
    CACHE.parent.mkdir(exist_ok=True)
    np.savez(CACHE, **{name.replace(".", "_"): p.detach().numpy() for name, p in net.named_parameters()})
    return net.eval()


def network() -> nn.Sequential:
    """The trained network; trains on the first call."""
    if not CACHE.exists():
        return train()
    net, kept = model(), np.load(CACHE)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(kept[name.replace(".", "_")]))
    return net.eval()


if __name__ == "__main__":
    print(f"test accuracy {accuracy(train()):.4f}, weights in {CACHE}")

"""A convolution, pruned through its windows."""

import nettrim as nt
import numpy as np
import torch
from torch import nn

from digits import images, labels, stored
from picture import SIGNED, bare, panels, save

torch.manual_seed(0)
torch.set_num_threads(1)
first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head)
pictures, classes = torch.tensor(images).reshape(-1, 1, 8, 8), torch.tensor(labels)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(15):
    for batch in torch.randperm(797).split(64):
        chosen = stored["train"][batch]
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            model(pictures[chosen]), classes[chosen]
        ).backward()
        optimizer.step()


def accuracy():
    return (
        (model(pictures[stored["test"]]).argmax(1) == classes[stored["test"]])
        .float()
        .mean()
        .item()
    )


with torch.no_grad():
    inputs = torch.relu(first(pictures[stored["calibration"]]))
    outputs = torch.relu(second(inputs))
    windows = nt.Convolution(
        inputs, kernel=3, padding=1, bias=True
    )  # 73 x 19200, never made
    C = np.ones(73)
    C[-1] = 0
    sol = nt.solve(windows, windows.flatten(outputs), epsilon=0.1, C=C)

    before, dense = second.weight.numpy().copy(), accuracy()
    kernels, bias = windows.weight(sol.W)
    second.weight.copy_(torch.tensor(kernels))
    second.bias.copy_(torch.tensor(bias))
    pruned = accuracy()

figure, maps = panels(height=2.2)
for axes, weight, name in (
    (maps[0], before, "trained"),
    (maps[1], kernels, "pruned"),
):
    tiles = np.full(
        (8 * 4 - 1, 16 * 4 - 1), np.nan
    )  # an input channel a row, an output channel a column
    for m, c in np.ndindex(16, 8):
        tiles[4 * c : 4 * c + 3, 4 * m : 4 * m + 3] = np.where(
            weight[m, c] == 0, np.nan, weight[m, c]
        )
    axes.imshow(tiles, cmap=SIGNED, vmin=-0.4, vmax=0.4)
    reached = dense if weight is before else pruned
    bare(axes, f"{name}: {np.mean(weight != 0):.0%}, accuracy {reached:.1%}")
    axes.set(xlabel="16 output channels", ylabel="8 input channels")
save(figure, "convolution")

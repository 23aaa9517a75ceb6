"""Single weights, or whole inputs: which pixels does the first layer read?"""

import nettrim as nt

from digits import calibration, layer
from picture import bare, panels, save

X, Y, C = layer(0, calibration)
Y = Y[:60]  # 60 of its 300 neurons
solutions = {
    "l1": nt.solve(X, Y, epsilon=0.1, C=C),
    "rows": nt.solve(X, Y, epsilon=0.1, C=C, penalty="rows"),
    "rows, 4 rounds": nt.sparsest(X, Y, epsilon=0.1, C=C, penalty="rows", rounds=4),
}

figure, maps = panels(1, 3, height=2.7)
for axes, (name, sol) in zip(maps, solutions.items(), strict=True):
    readers = (sol.W[:-1] != 0).sum(axis=1)  # neurons that read each pixel
    image = axes.imshow(
        readers.reshape(8, 8), vmin=0, vmax=sol.W.shape[1], cmap="Blues"
    )
    read = f"{(readers > 0).sum()} of 64 pixels"
    bare(axes, f"{name}: {read},\n{sol.density:.0%} of the weights")
figure.colorbar(image, ax=maps, label="neurons that read the pixel")
save(figure, "inputs")

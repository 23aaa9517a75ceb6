"""The network and the images of `nettrim demo` as plain arrays."""

import importlib.resources

import numpy as np
from sklearn.datasets import load_digits

with (importlib.resources.files("nettrim") / "data" / "digits_relu.npz").open(
    "rb"
) as file:
    stored = dict(np.load(file, allow_pickle=False))
weights = [
    stored[f"W{k}"].astype(np.float32) for k in range(3)
]  # inputs x outputs: 64 x 300, 300 x 100, 100 x 10
biases = [stored[f"b{k}"].astype(np.float32) for k in range(3)]

bundle = load_digits()
images, labels = (bundle.data / 16).astype(np.float32), bundle.target
# 300 images that the network was trained on, 300 others, and more to judge by
calibration = images[np.concatenate([stored["train"][:300], stored["calibration"]])]
heldout, test, test_labels = (
    images[stored["heldout"]],
    images[stored["test"]],
    labels[stored["test"]],
)


def layer(k, samples):
    """X with a row of ones for the bias, Y, and C, in which the bias is free."""
    for W, b in zip(weights[:k], biases[:k], strict=True):
        samples = np.maximum(samples @ W + b, 0)
    outputs = samples @ weights[k] + biases[k]
    X = np.vstack([samples.T, np.ones(len(samples), np.float32)])
    C = np.ones(len(X))
    C[-1] = 0
    return X, (np.maximum(outputs, 0) if k < 2 else outputs).T, C

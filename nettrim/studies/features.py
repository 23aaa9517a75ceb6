"""Features of images that are fixed before any training, where a deep network takes too long to train.

Filters are random patches of the training images, whitened; activations pass a soft threshold and are averaged over
the quadrants of the image (Coates & Ng 2011, "The importance of encoding versus training with sparse coding and vector
quantization"; Coates, Lee & Ng 2011 for the patches and the pooling). No label is used, and of the samples that are
not for training, nothing. What comes after them sees non-negative inputs, as a layer after a ReLU does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nettrim.studies.data import DataSet

__all__ = ["frozen_features"]

#: side of a patch, and of the grid of parts that activations are averaged over
SIDE, PARTS = 6, 2
#: patches that means and covariances are taken from, at most
PATCHES = 100_000
#: added to a patch's variance: the paper's 10 of 255 x 255 grey levels, for pixels of deviation 1, which is about 63
CONTRAST = 10 / 63**2
#: added to the eigenvalues of the patches' covariance (Coates, Lee & Ng)
WHITENING = 0.1
#: activations below it are 0 (Coates & Ng's for CIFAR-10); 0.25 to 1 make little difference to what can be learned
THRESHOLD = 0.25
#: of every feature over the training part: as the pixels of MNIST have it, which the studies' rates are made for
MEAN_SQUARE = 0.1
#: images of a batch: a few, whose activations stay in the cache
BATCH = 8


@dataclass(frozen=True)
class _Filters:
    """Weights of a convolution of centred patches (filters, channels, side, side), and what is subtracted after it."""

    weights: torch.Tensor
    offsets: torch.Tensor


def frozen_features(samples: DataSet, seed: int = 0, count: int = 1000) -> DataSet:
    """Features of every part of a set of images, by filters and scales of its training part.

    Parameters
    ----------
    samples : DataSet
        Images (channels, height, width) of at least 7 x 7 pixels, whose channels have deviations of about 1.
    seed : int
        Of the patches.
    count : int
        Features an image: a multiple of 4, for a filter in each of the four quadrants.

    Returns
    -------
    DataSet
        Inputs float32 (features,), not negative, the mean square of each feature 0.1 over the training part (0 where
        a feature is zero for all of it); the same labels.

    Raises
    ------
    ValueError
        `count` is not a multiple of 4, or more filters than there are patches; inputs are not such images.
    """
    images = samples.train[0]
    if images.ndim != 4 or min(images.shape[2:]) <= SIDE:
        raise ValueError(
            f"samples must be images (channels, height, width) of more than {SIDE} x {SIDE} pixels; "
            f"got inputs of shape {images.shape[1:]}"
        )
    if count < 1 or count % PARTS**2:
        raise ValueError(f"count must be a positive multiple of {PARTS**2}; got {count!r}")
    filters = _learn(images, count // PARTS**2, np.random.default_rng(seed))
    parts = [(_features(x, filters), y) for x, y in (samples.train, samples.validation, samples.test)]
    squares = np.einsum("ij,ij->j", parts[0][0], parts[0][0], dtype=np.float64) / len(images)
    scales = np.sqrt(np.divide(MEAN_SQUARE, squares, out=np.zeros_like(squares), where=squares > 0))
    for features, _ in parts:
        features *= scales.astype(np.float32)
    return DataSet(f"{samples.name}, features", *parts)


def _learn(images: np.ndarray, filters: int, random: np.random.Generator) -> _Filters:
    """Whiten random patches, and choose some of them as filters.

    Derivation: a patch p is centred and scaled, q = (p - mean p) / sqrt(var p + CONTRAST), and whitened,
    w = Z (q - m), with Z the inverse square root of the covariance of q. The activation of a filter f is f'w.
    Implementation: f'w = (G'p) / sqrt(var p + CONTRAST) - G'm with G = C Z f, C the centring of a patch, so that one
    convolution with G and the variances of the patches do for all of it.
    """
    height, width = images.shape[2:]
    wanted = min(PATCHES, len(images) * (height - SIDE + 1) * (width - SIDE + 1))
    if filters > wanted:
        raise ValueError(f"count must be at most {PARTS**2 * wanted}, of {wanted} patches; got {PARTS**2 * filters}")
    which = random.integers(0, len(images), wanted)
    top, left = random.integers(0, height - SIDE + 1, wanted), random.integers(0, width - SIDE + 1, wanted)
    windows = np.lib.stride_tricks.sliding_window_view(images, (SIDE, SIDE), axis=(2, 3))
    patches = windows[which, :, top, left].reshape(wanted, -1).astype(np.float64)
    patches -= patches.mean(axis=1, keepdims=True)
    patches /= np.sqrt(patches.var(axis=1, keepdims=True) + CONTRAST)
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    whiten = (vectors / np.sqrt(np.maximum(values, 0) + WHITENING)) @ vectors.T
    chosen = (patches[random.choice(wanted, filters, replace=False)] - mean) @ whiten
    chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), np.finfo(float).tiny)
    weights = chosen @ whiten
    offsets = weights @ mean
    weights -= weights.mean(axis=1, keepdims=True)
    shaped = weights.reshape(filters, images.shape[1], SIDE, SIDE)
    return _Filters(torch.from_numpy(shaped.astype(np.float32)), torch.from_numpy(offsets.astype(np.float32)))


@torch.no_grad()
def _features(images: np.ndarray, filters: _Filters) -> np.ndarray:
    """Features (samples, count) before scaling, batch by batch."""
    made = np.empty((len(images), len(filters.weights) * PARTS**2), np.float32)
    for begin in range(0, len(images), BATCH):
        x = torch.from_numpy(images[begin : begin + BATCH])
        found = nn.functional.conv2d(x, filters.weights)
        found /= torch.sqrt(_variances(x) + CONTRAST)
        found -= (filters.offsets + THRESHOLD)[:, None, None]
        nn.functional.relu_(found)
        # odd sizes: the quadrants share the middle row and column
        pooled = nn.functional.adaptive_avg_pool2d(found, PARTS)
        made[begin : begin + BATCH] = pooled.flatten(1).numpy()
    return made


def _variances(x: torch.Tensor) -> torch.Tensor:
    """Of the entries of each patch, all channels together (B, 1, rows, columns)."""
    # both averages are of windows of the same size: channels first, then places
    mean, square = (nn.functional.avg_pool2d(a.mean(1, keepdim=True), SIDE, 1) for a in (x, x.square()))
    return (square - mean.square()).clamp_min(0)

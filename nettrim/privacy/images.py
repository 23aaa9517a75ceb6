"""How near images are to others, and whether an attack was strong enough for a failure to mean anything.

A weak attack fakes privacy: it fails on the pruned network, and would have failed on the dense one. So every attack is
held against what anyone can do without the representation, the blank image and the mean of public images; only an
attack that beats both ON THE DENSE NETWORK may be used to speak of pruned ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.extras import install

__all__ = ["TOO_WEAK", "Gate", "gate", "grid", "psnr", "ssim"]

#: what a cell reads where the attack does not beat the baselines on the dense network
TOO_WEAK = "attack too weak"
#: dB: beyond it images are the same, as far as eight bits can tell, and means stay finite
_MOST = 100.0


def psnr(images: np.ndarray, true: np.ndarray, span: float = 1.0) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, in dB, at most 100.

    Parameters
    ----------
    images : (B, C, H, W) or (C, H, W) array
        One for each of the true ones, or one for all.
    true : (B, C, H, W) array
    span : float
        Largest possible difference of two pixels.

    Returns
    -------
    (B,) float64 array

    Raises
    ------
    ImportError
        scikit-image is not installed.
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    metrics = _metrics()
    made, true = _pair(images, true, span)
    with np.errstate(divide="ignore"):
        found = [metrics.peak_signal_noise_ratio(b, a, data_range=span) for a, b in zip(made, true, strict=True)]
    return np.minimum(np.array(found, float), _MOST)


def ssim(images: np.ndarray, true: np.ndarray, span: float = 1.0) -> np.ndarray:
    """Structural similarity of each image, the mean over windows of 7 x 7 pixels and over channels (Wang et al. 2004).

    Parameters
    ----------
    images : (B, C, H, W) or (C, H, W) array
        One for each of the true ones, or one for all; at least 7 pixels wide and high.
    true : (B, C, H, W) array
    span : float
        Largest possible difference of two pixels.

    Returns
    -------
    (B,) float64 array
        At most 1.

    Raises
    ------
    ImportError
        scikit-image is not installed.
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    metrics = _metrics()
    made, true = _pair(images, true, span)
    if min(true.shape[2:]) < 7:
        raise ValueError(f"true must be at least 7 pixels wide and high; got {true.shape}")
    found = [
        metrics.structural_similarity(b, a, data_range=span, channel_axis=0) for a, b in zip(made, true, strict=True)
    ]
    return np.array(found, float)


@dataclass(frozen=True)
class Gate:
    """Whether an attack on the dense network beats what needs no attack.

    Attributes
    ----------
    passed : bool
        Whether the interval of each margin is above zero.
    margins : tuple of float
        Mean PSNR of the attack less that of each baseline, in dB.
    halves : tuple of float
        Half of each margin's 95 % interval, by Student's t, of the images' differences; NaN for one image.
    """

    passed: bool
    margins: tuple[float, ...]
    halves: tuple[float, ...]

    def read(self, cell: str) -> str:
        """The cell, or that the attack is too weak to fill it."""
        return cell if self.passed else TOO_WEAK


def gate(attack: Sequence[float] | np.ndarray, *baselines: Sequence[float] | np.ndarray) -> Gate:
    """Hold an attack on the dense network against baselines, image by image.

    >>> from nettrim.privacy.images import gate
    >>> found = gate([15.0, 16.0, 14.0], [10.0, 11.0, 9.5], [12.0, 16.0, 15.0])
    >>> found.passed, found.read("15 dB")
    (False, 'attack too weak')

    Parameters
    ----------
    attack : sequence of float
        PSNR of each image, in dB.
    *baselines : sequence of float
        The same for the same images, such as the blank and the mean image; at least one.

    Returns
    -------
    Gate
        Not passed with one image only.

    Raises
    ------
    ValueError
        No baseline, or not as many numbers in each.
    """
    from scipy.stats import t

    values = np.asarray(attack, float)
    if not baselines or values.ndim != 1 or not values.size:
        raise ValueError("attack must be a list of PSNRs, and baselines at least one such list")
    margins, halves = [], []
    for other in baselines:
        if np.shape(other) != values.shape:
            raise ValueError(f"baselines must have {values.size} numbers each; got {np.shape(other)}")
        differences, count = values - np.asarray(other, float), values.size
        margins.append(float(differences.mean()))
        spread = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        halves.append(float(t.ppf(0.975, count - 1)) * spread if count > 1 else math.nan)
    passed = all(margin - half > 0 for margin, half in zip(margins, halves, strict=True))
    return Gate(passed, tuple(margins), tuple(halves))


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    span: tuple[float, float],
) -> Any:
    """A figure of images in rows and columns.

    Parameters
    ----------
    rows : sequence of sequences of (C, H, W) arrays
        As many in each; C is 1 or 3.
    row_names, column_names : sequence of str
    span : (float, float)
        The pixels' values that are black and white.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Not as many images as names, or images of other channels.
    """
    try:
        # a Figure of its own: the caller's plots and backend are left alone
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {install('studies')}") from error
    if not rows or len(rows) != len(row_names) or {len(row) for row in rows} != {len(column_names)}:
        raise ValueError(f"rows must be {len(row_names)} lists of {len(column_names)} images, as the names say")
    if {image.shape[:1] for row in rows for image in row} - {(1,), (3,)}:
        raise ValueError("rows must be images of shape (1, H, W) or (3, H, W)")
    figure = Figure(figsize=(1.1 * len(column_names) + 1, 1.1 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), len(column_names), squeeze=False)
    for i, (row, row_name) in enumerate(zip(rows, row_names, strict=True)):
        for j, (image, column_name) in enumerate(zip(row, column_names, strict=True)):
            axes = panels[i, j]
            scaled = np.clip((image - span[0]) / (span[1] - span[0]), 0, 1)
            axes.imshow(scaled[0] if len(scaled) == 1 else scaled.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_title(column_name, fontsize=8)
            if j == 0:
                axes.set_ylabel(row_name, fontsize=8)
    return figure


def _metrics() -> Any:
    try:
        from skimage import metrics
    except ImportError as error:
        raise ImportError(f"PSNR and SSIM need scikit-image: {install('studies')}") from error
    return metrics


def _pair(images: np.ndarray, true: np.ndarray, span: float) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < span < math.inf:
        raise ValueError(f"span must be positive and finite; got {span!r}")
    for name, values in (("images", images), ("true", true)):
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            raise TypeError(f"{name} must be an array of a floating dtype")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} contains NaN or inf")
    if true.ndim != 4 or not len(true) or images.shape not in (true.shape, true.shape[1:]):
        raise ValueError(
            f"images must be of the shape of true, (B, C, H, W), or of one; got {images.shape}, {true.shape}"
        )
    return np.broadcast_to(images, true.shape).astype(np.float64), true.astype(np.float64)

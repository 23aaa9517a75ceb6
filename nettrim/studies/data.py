"""The data sets of the studies, as arrays: MNIST, and CIFAR-10 from a folder of JPEG files in zip archives.

Both are looked for in ``$NETTRIM_DATA``; MNIST is fetched from OpenML otherwise.
"""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nettrim.extras import install

__all__ = ["DataSet", "cifar10", "digit_rows", "load", "mnist", "synthetic"]

#: training samples that are kept back to choose by; the test samples are for the figures that are reported
VALIDATION = 5000


@dataclass(frozen=True)
class DataSet:
    """Samples of three disjoint parts; inputs float32, batch first, labels int64.

    Attributes
    ----------
    name : str
    train, validation, test : (inputs, labels)
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(name: str, seed: int = 0) -> DataSet:
    """A data set by its name, the validation samples drawn by `seed`.

    Parameters
    ----------
    name : str
        "mnist", "digit_rows" or "cifar10"; or, made here, "synthetic_images", "synthetic_rows", "synthetic_colours".
    seed : int

    Raises
    ------
    ValueError
        Another name.
    FileNotFoundError
        It is not in ``$NETTRIM_DATA`` and cannot be fetched.
    """
    if name not in _SETS:
        raise ValueError(f"name must be one of {', '.join(_SETS)}; got {name!r}")
    return _SETS[name](seed)


def mnist(seed: int = 0) -> DataSet:
    """Images (1, 28, 28) in [0, 1]: 55,000 to train on, 5,000 to validate, 10,000 to test."""
    parts = [(images[:, None] / np.float32(255), labels) for images, labels in map(_mnist_part, ("train", "t10k"))]
    return _split("mnist", parts[0], parts[1], seed)


def digit_rows(seed: int = 0) -> DataSet:
    """MNIST as sequences: 28 steps, each a row of 28 pixels."""
    made = mnist(seed)
    parts = [(x[:, 0], y) for x, y in (made.train, made.validation, made.test)]
    return DataSet("digit_rows", *parts)


def cifar10(seed: int = 0) -> DataSet:
    """Images (3, 32, 32), their classes mixed, normalised by the channels' means and deviations of the training images.

    The files are JPEG (lossy): accuracies compare with each other, and only roughly with those of the original data.
    """
    train, test = (_cifar_part(part) for part in ("train", "test"))
    mean = train[0].mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = train[0].std(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    for images, _ in (train, test):
        images -= mean
        images /= deviation
    return _split("cifar10", train, test, seed)


def synthetic(shape: tuple[int, ...], name: str) -> Callable[[int], DataSet]:
    """A small set of ten classes, each a random pattern under noise: for presets that only show that all runs."""

    def make(seed: int = 0) -> DataSet:
        rng = np.random.default_rng(seed)
        patterns = rng.standard_normal((10, *shape)).astype(np.float32)
        parts = []
        for count in (600, 200, 200):
            labels = rng.integers(0, 10, count)
            parts.append((patterns[labels] + rng.standard_normal((count, *shape)).astype(np.float32), labels))
        return DataSet(name, *parts)

    return make


_SETS: dict[str, Callable[[int], DataSet]] = {
    "mnist": mnist,
    "digit_rows": digit_rows,
    "cifar10": cifar10,
    "synthetic_images": synthetic((1, 28, 28), "synthetic_images"),
    "synthetic_rows": synthetic((28, 28), "synthetic_rows"),
    "synthetic_colours": synthetic((3, 32, 32), "synthetic_colours"),
}


def _split(name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int) -> DataSet:
    order = np.random.default_rng(seed).permutation(len(train[0]))
    back, rest = np.sort(order[:VALIDATION]), np.sort(order[VALIDATION:])
    return DataSet(name, (train[0][rest], train[1][rest]), (train[0][back], train[1][back]), test)


def _folder() -> Path | None:
    named = os.environ.get("NETTRIM_DATA")
    if named and not Path(named).is_dir():
        raise FileNotFoundError(f"NETTRIM_DATA is {named}, which is not a folder")
    return Path(named) if named else None


def _mnist_part(part: str) -> tuple[np.ndarray, np.ndarray]:
    folder = _folder()
    files = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
    if folder is not None and all((folder / "mnist" / file).exists() for file in files):
        images, labels = (gzip.decompress((folder / "mnist" / file).read_bytes()) for file in files)
        return (
            np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
            np.frombuffer(labels, np.uint8, offset=8).astype(np.int64),
        )
    return _openml_part(slice(0, 60000) if part == "train" else slice(60000, 70000))


def _openml_part(part: slice) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import fetch_openml

        pixels, labels = fetch_openml("mnist_784", return_X_y=True, as_frame=False)
    except (ImportError, OSError) as error:
        raise FileNotFoundError(
            "MNIST is not here: set NETTRIM_DATA to a folder with mnist/*.gz (IDX files), or let scikit-learn fetch it "
            f"from OpenML ({error})"
        ) from error
    return pixels[part].reshape(-1, 28, 28).astype(np.uint8), labels[part].astype(np.int64)


def _cifar_part(part: str) -> tuple[np.ndarray, np.ndarray]:
    folder = _folder()
    path = None if folder is None else folder / "cifar10" / f"{part}.zip"
    if path is None or not path.exists():
        raise FileNotFoundError(
            "CIFAR-10 is not here: set NETTRIM_DATA to a folder with cifar10/train.zip and cifar10/test.zip, which "
            "hold class/number.jpg"
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"JPEG files need Pillow: {install('studies')}") from error
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        # the files are in order of their classes: mixed, always in the same way, so that the first n are a sample
        np.random.default_rng(0).shuffle(names)
        classes = sorted({_class_of(name) for name in names})
        images = np.empty((len(names), 3, 32, 32), np.float32)
        for k, name in enumerate(names):
            with Image.open(io.BytesIO(archive.read(name))) as image:
                images[k] = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    return images, np.array([classes.index(_class_of(name)) for name in names], np.int64)


def _class_of(name: str) -> str:
    return name.split("/")[-2]

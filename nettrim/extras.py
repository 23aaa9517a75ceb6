"""The optional packages: what each is for, and which extra of nettrim installs it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["OPTIONAL", "Package", "install"]


class Package(NamedTuple):
    """An optional package.

    Attributes
    ----------
    name : str
        Of its distribution; CuPy's are called after the version of CUDA.
    module : str
        What is imported.
    extras : tuple of str
        Some that install it; any will do.
    purpose : str
        What nettrim does with it.
    """

    name: str
    module: str
    extras: tuple[str, ...]
    purpose: str


#: every package that the extras of pyproject.toml bring, but for `dev` and `docs`
OPTIONAL = (
    Package("torch", "torch", ("torch",), "nettrim.torch"),
    Package("safetensors", "safetensors", ("torch",), "files of networks' weights"),
    Package("cupy", "cupy", ("cuda12", "cuda13"), "GPUs, by version of CUDA"),
    Package("distributed", "distributed", ("dask",), "nettrim.distributed"),
    Package("dask", "dask", ("dask", "disk"), "clusters, arrays in Chunked"),
    Package("h5py", "h5py", ("disk",), "HDF5 files in Chunked"),
    Package("zarr", "zarr", ("disk",), "Zarr arrays in Chunked"),
    Package("cvxpy", "cvxpy", ("reference",), "nettrim.reference"),
    Package("clarabel", "clarabel", ("reference",), "solver of nettrim.reference"),
    Package("scs", "scs", ("reference",), "solver of nettrim.reference"),
    Package("matplotlib", "matplotlib", ("demo", "studies"), "pictures"),
    Package("scikit-learn", "sklearn", ("demo", "studies"), "the demo, measured leakage"),
    Package("opacus", "opacus", ("privacy",), "the accountant of DP-SGD"),
    Package("scikit-image", "skimage", ("privacy", "studies"), "likeness of images"),
    Package("pillow", "PIL", ("studies",), "JPEG files of CIFAR-10"),
    Package("pandas", "pandas", ("studies",), "MNIST from OpenML"),
)


def install(*extras: str) -> str:
    """What to do where a package of these extras is missing, for the end of a message.

    >>> from nettrim.extras import install
    >>> install("torch")
    "install nettrim's extra torch (in a clone: pip install -e '.[torch]')"
    """
    what = "extra" if len(extras) == 1 else "extras"
    return f"install nettrim's {what} {' and '.join(extras)} (in a clone: pip install -e '.[{','.join(extras)}]')"

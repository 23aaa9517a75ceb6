"""Prune trained networks by convex optimisation, with a certificate.

>>> import numpy as np, nettrim as nt
>>> rng = np.random.default_rng(0)
>>> X = rng.standard_normal((30, 300))
>>> Y = np.maximum(rng.standard_normal((30, 4)).T @ X, 0)
>>> nt.solve(X, Y, epsilon=0.1).status
<Status.SOLVED: 'solved'>
"""

from importlib.util import find_spec

if find_spec("nettrim.kernels") is None:
    # they lie beside the package in the sources, and in it where it is installed, if only as editable
    raise ImportError(
        f"nettrim was imported from its sources, {__path__[0]}, where Python does not find its kernels: "
        "run pip install -e . in the clone, or start Python in another folder"
    )

from nettrim import penalties
from nettrim.budget import Allocation, allocate
from nettrim.calls import solve, sparsest
from nettrim.chunked import Chunked
from nettrim.convolution import Convolution
from nettrim.geometry import Geometry, channel_groups
from nettrim.l0 import l0
from nettrim.layer import Layer
from nettrim.measured import Measured
from nettrim.network import PrunedNetwork, prune
from nettrim.operators import Gram
from nettrim.path import Path, path
from nettrim.problem import Problem
from nettrim.refit import refit
from nettrim.reweight import Reweighted
from nettrim.settings import Settings
from nettrim.solution import Certificate, Solution, Status, certify, verify_ray
from nettrim.solver import Solver

__all__ = [
    "Allocation",
    "Certificate",
    "Chunked",
    "Convolution",
    "Geometry",
    "Gram",
    "Layer",
    "Measured",
    "Path",
    "Problem",
    "PrunedNetwork",
    "Reweighted",
    "Settings",
    "Solution",
    "Solver",
    "Status",
    "allocate",
    "certify",
    "channel_groups",
    "l0",
    "path",
    "penalties",
    "prune",
    "refit",
    "solve",
    "sparsest",
    "verify_ray",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # without importing cvxpy or Dask, or anything else, with the package
    if name in ("reference", "distributed"):
        import importlib

        return importlib.import_module(f"nettrim.{name}")
    raise AttributeError(f"module 'nettrim' has no attribute {name!r}")

"""From how many samples Net-Trim finds a sparse neuron: Theorem 4.4 and section 4.1 of Aghasi et al. (2020).

"transition": neurons with s of N weights put out ``max(W'x, 0)``; samples are added, and the program with a radius of
zero (4.6) is solved by l1 and by reweighted l1. A neuron is found if its weights come back. "eigenvalue": the smallest
eigenvalue of the covariance of the virtual input ``x 1(w'x > 0)``, on which the theorem's constant depends.

Inputs are Gaussian; random signs, which are subgaussian; or what a layer of random Gaussian weights with a ReLU makes
of Gaussian samples ("second layer"): not negative, and not centred.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nettrim as nt
from nettrim.studies.networks import hashed
from nettrim.studies.records import Records
from nettrim.studies.recovery_report import plot, tables

__all__ = ["INPUTS", "KEY", "PRESETS", "Config", "planted", "plot", "run", "tables"]

#: what tells records apart
KEY = ("part", "inputs", "sparsity", "seed", "recipe")

INPUTS = ("gaussian", "signs", "second layer")
#: relative distance to the planted weights below which a neuron counts as found
FOUND = 1e-3
#: solved in float64 to these tolerances, far below FOUND
_EXACT = {"gap_tol": 1e-7, "feas_tol": 1e-7}


@dataclass(frozen=True)
class Config:
    """Sizes of the programs.

    Attributes
    ----------
    N : int
        Inputs.
    neurons : int
        Of each layer, each with weights of its own.
    sparsities : tuple of float
        s/N.
    samples : tuple of float
        P/N, ascending: each layer's samples are the first of the same sequence.
    rounds : int
        Of reweighted l1, at most.
    moments : int
        Samples that the covariance is estimated from.
    seeds : tuple of int
    """

    N: int = 80
    neurons: int = 16
    sparsities: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2, 0.3, 0.45)
    samples: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.2, 1.5, 2.0)
    rounds: int = 4
    moments: int = 200_000
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def recipe(self) -> str:
        """A short name for everything but the grid of sparsities and the seeds."""
        return hashed({k: v for k, v in asdict(self).items() if k not in ("sparsities", "seeds")})


PRESETS = {
    "smoke": Config(20, 3, (0.1, 0.3), (0.5, 1.0, 3.0), moments=2000, seeds=(0, 1)),
    "cpu": Config(),
    "paper": Config(
        *(500, 50, tuple(k / 40 for k in range(1, 21)), tuple(k / 20 for k in range(1, 51))),
        moments=2_000_000,
        seeds=tuple(range(10)),
    ),
}


def run(config: Config, records: Records, folder: Path, say: Callable[[str], Any] = print) -> None:
    """Do what is not in the records yet.

    Parameters
    ----------
    config : Config
    records : Records
        With the key `KEY`.
    folder : Path
        Not used: nothing is trained.
    say : callable
        Told what is done.
    """
    for seed in config.seeds:
        for sparsity in config.sparsities:
            for inputs in INPUTS:
                for part, measure in (("transition", _transition), ("eigenvalue", _eigenvalue)):
                    about = {"part": part, "inputs": inputs, "sparsity": sparsity, "seed": seed}
                    # the eigenvalue does not depend on the sparsity but by chance: one is enough
                    if part == "eigenvalue" and sparsity != config.sparsities[0]:
                        continue
                    if records.find(**about, recipe=config.recipe) is None:
                        began = time.perf_counter()
                        found = measure(config, inputs, sparsity, seed)
                        seconds = time.perf_counter() - began
                        records.add(**about, recipe=config.recipe, N=config.N, **found, seconds=seconds)
                        say(f"{part}, {inputs}, s/N {sparsity:g}, seed {seed}: {seconds:.1f} s")


def planted(inputs: str, N: int, P: int, s: int, neurons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a kind of inputs, and neurons with s weights each, in random places and Gaussian.

    Parameters
    ----------
    inputs : {"gaussian", "signs", "second layer"}
    N, P, s, neurons : int
    seed : int
        Samples with a smaller P are the first ones of those with a larger P.

    Returns
    -------
    X : (N, P) float64 array
    W : (N, neurons) float64 array

    Raises
    ------
    ValueError
        Other inputs; s is not from 1 to N.
    """
    if not 1 <= s <= N:
        raise ValueError(f"s must be from 1 to N = {N}; got {s!r}")
    weights, samples = np.random.default_rng((seed, s, 0)), np.random.default_rng((seed, s, 1))
    W = np.zeros((N, neurons))
    for column in W.T:
        column[weights.choice(N, s, replace=False)] = weights.standard_normal(s)
    return _inputs(inputs, N, P, weights, samples), W


def _inputs(inputs: str, N: int, P: int, weights: np.random.Generator, samples: np.random.Generator) -> np.ndarray:
    if inputs not in INPUTS:
        raise ValueError(f"inputs must be one of {', '.join(INPUTS)}; got {inputs!r}")
    if inputs == "signs":
        return samples.choice((-1.0, 1.0), (P, N)).T
    if inputs == "gaussian":
        return samples.standard_normal((P, N)).T
    first = weights.standard_normal((N, N)) / np.sqrt(N)
    return np.maximum(first.T @ samples.standard_normal((P, N)).T, 0)


def _transition(config: Config, inputs: str, sparsity: float, seed: int) -> dict[str, Any]:
    """For each number of samples: which neurons are found, and on how many samples each is active."""
    s = max(1, round(sparsity * config.N))
    counts = [max(1, round(part * config.N)) for part in config.samples]
    X, W = planted(inputs, config.N, counts[-1], s, config.neurons, seed)
    norms = np.linalg.norm(W, axis=0)
    rows = []
    for P in counts:
        Y = np.maximum(W.T @ X[:, :P], 0)
        row: dict[str, Any] = {"P": P, "active": (Y > 0).sum(axis=1).tolist()}
        for name, solution in (
            ("plain", nt.solve(X[:, :P], Y, epsilon_abs=0.0, **_EXACT)),
            ("reweighted", nt.sparsest(X[:, :P], Y, epsilon_abs=0.0, rounds=config.rounds, **_EXACT)),
        ):
            row[name] = (np.linalg.norm(solution.W - W, axis=0) <= FOUND * norms).astype(int).tolist()
            row[f"{name}_status"] = str(solution.status)
        rows.append(row)
    return {"s": s, "rows": rows}


def _eigenvalue(config: Config, inputs: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Smallest eigenvalue of the virtual input's covariance for a dense Gaussian neuron, from many samples."""
    weights, samples = np.random.default_rng((seed, 2)), np.random.default_rng((seed, 3))
    w = weights.standard_normal(config.N)
    X = _inputs(inputs, config.N, config.moments, weights, samples)
    active = w @ X > 0
    mean, second = X[:, active].sum(axis=1) / config.moments, X[:, active] @ X[:, active].T / config.moments
    values, vectors = np.linalg.eigh(second - np.outer(mean, mean))
    along = float(abs(vectors[:, 0] @ w) / np.linalg.norm(w))
    return {"least": values[0], "next": values[1], "along": along, "active": float(active.mean())}

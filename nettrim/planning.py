"""What pruning the layers of a network will take, counted before it begins: bytes, and rough seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nettrim.device import host_speed
from nettrim.layer import Layer, kind_of
from nettrim.settings import Settings
from nettrim.units import align, as_bytes, as_seconds

__all__ = ["LayerPlan", "NetworkPlan", "plan_layer"]

#: products with all samples, there and back, that a solve costs: working sets take about 15 and then work on parts of
#: the layer for as long again, or many times as long where much is kept
PASSES = 100
#: iterations of ADMM on the moments of a linear layer
ITERATIONS = 500
#: bytes for what does not grow with the layer
FIXED = 50e6


@dataclass(frozen=True)
class LayerPlan:
    """What a layer's problem will take.

    Attributes
    ----------
    name, kind : str
        As in `LayerReport`.
    N, M, P : int
        Rows of the problem (inputs of a neuron, with the bias), its neurons, and samples; of a convolution's group,
        windows count as samples.
    memory : int
        Bytes that the layer's inputs and outputs and the solver's arrays take in memory; on a ReLU layer working sets
        may take up to ``memory_limit`` more.
    disk : int
        Bytes of a temporary file with the inputs, if they exceed what may be held in memory.
    seconds : float
        A rough estimate on the CPU.
    """

    name: str
    kind: str
    N: int
    M: int
    P: int
    memory: int
    disk: int
    seconds: float


@dataclass(frozen=True)
class NetworkPlan:
    """What a run will take.

    Attributes
    ----------
    layers : list of LayerPlan
    samples, held_out : int
        Samples to calibrate on, and that are held back.
    """

    layers: list[LayerPlan]
    samples: int
    held_out: int

    @property
    def seconds(self) -> float:
        """Of all layers."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def memory(self) -> int:
        """Of the largest layer, since they are solved one after the other."""
        return max(layer.memory for layer in self.layers)

    @property
    def disk(self) -> int:
        """Of the largest temporary file."""
        return max(layer.disk for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        totals = {"samples": self.samples, "held_out": self.held_out, "memory": self.memory, "disk": self.disk}
        return {**totals, "seconds": self.seconds, "layers": [asdict(layer) for layer in self.layers]}

    def table(self) -> str:
        """The plan as text."""
        titles = ("layer", "kind", "inputs", "neurons", "samples", "memory", "on disk", "seconds")
        rows = [
            (
                *(p.name, p.kind, f"{p.N:,}", f"{p.M:,}", f"{p.P:,}", as_bytes(p.memory)),
                *(as_bytes(p.disk) if p.disk else "", as_seconds(p.seconds)),
            )
            for p in self.layers
        ]
        last = (as_bytes(self.memory), as_bytes(self.disk) if self.disk else "", as_seconds(self.seconds))
        rows.append(("all, one at a time", "", "", "", "", *last))
        held = f", {self.held_out:,} held out" if self.held_out else ""
        head = f"plan: {len(self.layers)} layers, {self.samples:,} samples{held}"
        notes = [
            "seconds: of about the right order only, and the first run after an installation compiles kernels besides"
        ]
        if any(p.kind.endswith("ReLU") for p in self.layers):
            notes.append(
                f"memory: working sets may take up to {as_bytes(Settings().memory_limit)} more on a ReLU layer"
            )
        return "\n".join([head, align((titles, *rows), left=2), *notes])


def plan_layer(layer: Layer, P: int, stored: int, budget: float, n_threads: int | None = None) -> LayerPlan:
    """Count for a layer.

    Parameters
    ----------
    layer : Layer
    P : int
        Samples; of a convolution, windows of all images.
    stored : int
        Bytes of its inputs as the network has them: those of a convolution are not unfolded.
    budget : float
        Bytes of inputs that may be held in memory; more go to a file.
    n_threads : int, optional
        Of the solver.

    Returns
    -------
    LayerPlan
    """
    groups = layer.parts()
    N, M = layer.weight[0].size + (layer.bias is not None), groups[0][1].stop
    itemsize = layer.weight.dtype.itemsize
    speed = host_speed(np.dtype(layer.weight.dtype), n_threads).flops
    moments = 4.0 * N**2 * P
    disk = 0.0
    if layer.relu:
        inputs = float(stored) if layer.geometry is not None else itemsize * N * P
        memory, disk = (inputs, 0.0) if inputs <= budget else (0.0, inputs)
        # the outputs of all groups, and of one at a time the state, two results of passes, Omega, and factors
        memory += (itemsize * (len(groups) + 3) + 1) * M * P + 32 * N**2
        flops = PASSES * 4.0 * N * M * P + moments
    else:
        # moments of every group, and their copies and factors; samples pass through, a batch at a time
        memory = 48.0 * len(groups) * N * (N + M)
        flops = ITERATIONS * 4.0 * N**2 * M + moments + 2.0 * N * M * P
    return LayerPlan(layer.name, kind_of(layer), N, M, P, int(memory + FIXED), int(disk), len(groups) * flops / speed)

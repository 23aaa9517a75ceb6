"""A torch model after pruning, with its reports."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from nettrim import __version__
from nettrim.network import LayerReport, table

__all__ = ["PrunedModel"]


@dataclass
class PrunedModel:
    """A model after pruning, with a report for each layer.

    Attributes
    ----------
    model : nn.Module
    reports : list of LayerReport
    scheme : str
    folded : list of (str, str)
        Batch norms that were folded into layers: (layer, batch norm).
    settings : dict
    """

    model: nn.Module
    reports: list[LayerReport]
    scheme: str
    folded: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the pruned model."""
        return self.model(*args, **kwargs)

    def __repr__(self) -> str:
        return (
            f"PrunedModel({type(self.model).__name__}, {len(self.reports)} layers, {self.scheme}, {self.kept:.1%} kept)"
        )

    @property
    def kept(self) -> float:
        """Fraction of the pruned layers' weights and biases that are not zero."""
        return sum(r.kept for r in self.reports) / sum(r.weights for r in self.reports)

    def table(self) -> str:
        """The reports as text."""
        return table(self.reports)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "nettrim": __version__,
            "scheme": self.scheme,
            "kept": self.kept,
            "folded": [list(pair) for pair in self.folded],
            "settings": self.settings,
            "layers": [asdict(r) | {"density": r.density} for r in self.reports],
        }

    def save(self, path: str | os.PathLike[str], layout: str = "dense") -> None:
        """Write the weights as safetensors, with the report in its metadata and beside it as JSON.

        Parameters
        ----------
        path : path
        layout : {"dense", "csr"}
        """
        from nettrim.torch.store import save

        save(path, self.model, self.to_dict(), layout)

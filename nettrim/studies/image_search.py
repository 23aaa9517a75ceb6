"""The search for images behind a layer, for the studies of inversion and of leakage, in parts that are done once."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.privacy import images as measures
from nettrim.privacy.checkpoints import Checkpoint
from nettrim.privacy.inversion import Attack, choose_weight, invert, neighbours
from nettrim.privacy.layers import evaluation, represent
from nettrim.studies.data import DataSet
from nettrim.studies.pieces import Units

__all__ = ["SHOWN", "search"]

#: images that are kept for the grids
SHOWN = 4


def search(
    model: nn.Module,
    layer: str,
    samples: DataSet,
    attack: Attack,
    weights: tuple[float, ...],
    sizes: tuple[int, int, int],
    nearest: int | None,
    units: Units,
) -> dict[str, Any]:
    """Look for test images behind a layer, with a weight of the total variation that is chosen on others.

    Parameters
    ----------
    model : nn.Module
    layer : str
        Name of a module.
    samples : DataSet
    attack : Attack
        All but its weight is used.
    weights : tuple of float
        To choose from.
    sizes : (int, int, int)
        Test images that are looked for; validation images that the weight is chosen on, and others that the attacker
        has.
    nearest : int or None
        How many of those the start is the mean of; None starts from grey.
    units : Units
        Each weight, and the search itself, is a part.

    Returns
    -------
    dict
        Lists of PSNR, SSIM and feature error; the PSNR of what needs no search; the first images that were found.
    """
    count, first, public = sizes
    device, span = next(model.parameters()).device, attack.high - attack.low
    own = torch.from_numpy(samples.validation[0][: first + public]).to(device)
    tuning, public_images, true = own[:first], own[first:], samples.test[0][:count]
    with torch.no_grad(), evaluation(model):
        ours, target = (represent(model, layer, x) for x in (tuning, torch.from_numpy(true).to(device)))
    starts = [
        None if nearest is None else neighbours(model, layer, t, public_images, nearest, attack.aware)
        for t in (ours, target)
    ]

    def tried(weight: float) -> dict[str, float]:
        def look(state: Checkpoint) -> dict[str, float]:
            began = time.perf_counter()
            _, (reached,) = choose_weight(model, layer, tuning, attack, (weight,), starts[0], state)
            return {"psnr": reached, "seconds": time.perf_counter() - began}

        return units.once(f"{layer}, weight {weight!r}", look)

    scores = [tried(weight) for weight in weights]
    best = weights[max(range(len(weights)), key=lambda k: scores[k]["psnr"])]

    def found(state: Checkpoint) -> dict[str, Any]:
        began = time.perf_counter()
        ended = invert(model, layer, target, true.shape[1:], replace(attack, weight=best), starts[1], state)
        images = ended.images.cpu().numpy()
        return {
            "psnr": measures.psnr(images, true, span).tolist(),
            "ssim": measures.ssim(images, true, span).tolist(),
            "feature_error": ended.feature_error.tolist(),
            "shown": images[:SHOWN].astype(np.float16).tolist(),
            "seconds": time.perf_counter() - began,
        }

    ended = units.once(f"{layer}, images", found)
    start, mean = starts[1], samples.validation[0].mean(0)
    return {
        "weight": best,
        "tuning_psnr": {str(weight): score["psnr"] for weight, score in zip(weights, scores, strict=True)},
        **ended,
        "blank": measures.psnr(np.full_like(mean, attack.low), true, span).tolist(),
        "mean": measures.psnr(mean, true, span).tolist(),
        "neighbours": None if start is None else measures.psnr(start.cpu().numpy(), true, span).tolist(),
        "seconds": ended["seconds"] + sum(score["seconds"] for score in scores),
    }

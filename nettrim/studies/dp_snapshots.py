"""Weights of LeNet-5 after some epochs of a training, kept in files, so that phases can go on from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nettrim.report import write_atomically
from nettrim.studies import data
from nettrim.studies.dp_training import Process, build, train

__all__ = ["restore", "snapshots", "store"]


def store(model: nn.Module, path: Path) -> None:
    """Write a model's weights, whole or not at all."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}))


def restore(model: Any, path: Path) -> Any:
    """The model, with the weights of a file."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))
    return model


def snapshots(
    folder: Path,
    recipe: str,
    process: Process,
    samples: data.DataSet,
    epochs: int,
    at: Sequence[int],
    seed: int,
    device: str = "cpu",
    progress: Callable[[nn.Module, int], object] | None = None,
) -> dict[int, Path]:
    """Files of LeNet-5 after some epochs of one training from the initial values (0), which is done if one is missing.

    Parameters
    ----------
    folder : Path
    recipe : str
        Tells files of other configurations apart.
    process : Process
    samples : DataSet
    epochs : int
        The whole training, if it is done with `progress`; otherwise it ends at the last snapshot.
    at : sequence of int
        Epochs after which a snapshot is wanted.
    seed : int
    device : str
    progress : callable, optional
        Called with the model and each epoch, from 1: the training is then done in any case.

    Returns
    -------
    dict of int to Path
    """
    paths = {k: folder / f"lenet5, {process.name}, epoch {k}, seed {seed}, {recipe}.safetensors" for k in at}
    if progress is None and all(path.exists() for path in paths.values()):
        return paths
    model = build(seed, device)
    if 0 in paths:
        store(model, paths[0])

    def kept(epoch: int) -> None:
        if epoch in paths:
            store(model, paths[epoch])
        if progress is not None:
            progress(model, epoch)

    train(model, process, samples.train, epochs if progress else max(at), seed, progress=kept)
    return paths

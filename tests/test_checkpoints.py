"""Trainings that are interrupted anywhere go on bit for bit, and not from a file of another training."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch import nn  # noqa: E402

from nettrim.privacy import dp_sgd as dp  # noqa: E402
from nettrim.privacy.checkpoints import Checkpoint, read, state_digest, write  # noqa: E402
from nettrim.privacy.iterative import Recipe, iterative  # noqa: E402
from nettrim.studies import training  # noqa: E402


class Stopped(Exception):
    pass


def network(seed: int = 0, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    norms = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3)),
    )


def samples(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 70)
    patterns = rng.standard_normal((3, 1, 8, 8))
    return (patterns[labels] + rng.standard_normal((70, 1, 8, 8))).astype(np.float32), labels


def shifted(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=random)


def by_rounds(folder: Path, written: Callable[[], None], seconds: float) -> nn.Module:
    model = network()
    recipe = Recipe(rounds=2, epochs=2, retrain=1, size=20, share=0.3)
    for _ in iterative(model, *samples(), recipe, folder, shifted, written=written, seconds=seconds):
        pass
    return model


def by_gradients(folder: Path, written: Callable[[], None], seconds: float) -> nn.Module:
    model = network()
    # what this process draws before is not what another one does
    torch.manual_seed(5)
    masks = {"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 3 > 0}
    batches = training.Batches(*samples(), 20, 3, shifted)
    kept = Checkpoint(folder / "state.safetensors", {"data": 1}, written, seconds)
    losses = training.sgd(model, batches, 3, 0.05, 0.9, masks=masks, checkpoint=kept)
    assert len(losses) == 3
    return model


def by_adam(folder: Path, written: Callable[[], None], seconds: float) -> nn.Module:
    model = network()
    torch.manual_seed(5)
    kept = Checkpoint(folder / "state.safetensors", {}, written, seconds)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    training.descend(model, training.Batches(*samples(), 20, 3, shifted), 3, optimizer, checkpoint=kept)
    return model


def privately(folder: Path, written: Callable[[], None], seconds: float) -> nn.Module:
    model = network(norm=False)
    torch.manual_seed(5)
    masks = {"5.weight": np.arange(432).reshape(3, 144) % 3 > 0, "0.weight": np.ones((4, 1, 3, 3), bool)}
    masks = {name: mask for name, mask in masks.items() if name in dict(model.named_parameters())}
    kept = Checkpoint(folder / "state.safetensors", {"data": 1}, written, seconds)
    steps = dp.dp_sgd(
        *(model, dp.PoissonBatches(*samples(), 20, 3), 3, 0.5, dp.Mechanism(1.0, 0.5), masks, 7), checkpoint=kept
    )
    assert steps == 3 * round(70 / 20)
    return model


@pytest.mark.parametrize("train", [by_rounds, by_gradients, by_adam, privately])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_training_stopped_after_every_state_ends_bit_for_bit_the_same(tmp_path, train, seconds):
    whole = train(tmp_path / "whole", lambda: None, 1e9)
    pieces = 0

    def stop() -> None:
        raise Stopped

    for pieces in itertools.count(1):
        # numbers that another process has drawn in between, and a part of a file that was being written
        torch.rand(pieces)
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / ".state.safetensors.tmp").write_bytes(b"part")
        try:
            made = train(tmp_path / "parts", stop, seconds)
            break
        except Stopped:
            assert pieces < 50
    # a state for every batch, and at the least one for every epoch
    assert pieces > (9 if seconds == 0 else 3)
    assert state_digest(made) == state_digest(whole)


def test_a_finished_training_is_not_repeated(tmp_path):
    first = by_gradients(tmp_path, lambda: None, 1e9)

    def never() -> None:
        raise AssertionError("a state was written")

    assert state_digest(by_gradients(tmp_path, never, 0.0)) == state_digest(first)


def test_states_of_other_trainings_are_refused(tmp_path):
    by_gradients(tmp_path, lambda: None, 1e9)
    path = tmp_path / "state.safetensors"
    masks = {"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 3 > 0}
    for model, rate, about, chosen, message in (
        (network(), 0.1, {"data": 1}, masks, "in rate"),
        (network(), 0.05, {"data": 2}, masks, "in data"),
        (network(1), 0.05, {"data": 1}, masks, "in start"),
        (network(), 0.05, {"data": 1}, None, "in masks"),
    ):
        with pytest.raises(ValueError, match=f"another configuration, {message}"):
            training.sgd(
                *(model, training.Batches(*samples(), 20), 3, rate, 0.9),
                masks=chosen,
                checkpoint=Checkpoint(path, about),
            )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="checkpoint must be None with a schedule"):
        training.descend(model, [], 1, optimizer, schedule=schedule, checkpoint=Checkpoint(path))


def test_a_private_training_goes_on_with_its_own_noise_only(tmp_path):
    privately(tmp_path, lambda: None, 1e9)
    kept = Checkpoint(tmp_path / "state.safetensors", {"data": 1})
    model = network(norm=False)
    for batches, mechanism, seed in (
        (dp.PoissonBatches(*samples(), 20, 3), dp.Mechanism(1.0, 0.5), 8),
        (dp.PoissonBatches(*samples(), 20, 4), dp.Mechanism(1.0, 0.5), 7),
        (dp.PoissonBatches(*samples(), 20, 3), dp.Mechanism(1.0, 0.6), 7),
    ):
        with pytest.raises(ValueError, match="another configuration"):
            dp.dp_sgd(model, batches, 3, 0.5, mechanism, None, seed, checkpoint=kept)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "folder" / "state"
    write(path, {"kind": (1, 2)}, {"model": {"a b": torch.arange(3)}})
    parts, about = read(path, {"kind": (1, 2)})
    assert parts["model"]["a b"].tolist() == [0, 1, 2] and about == {"kind": [1, 2]}
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        read(path, {})

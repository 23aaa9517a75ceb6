"""Iterative magnitude pruning: exact counts, zeros that stay, and runs that go on bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch import nn  # noqa: E402

from nettrim.privacy.iterative import Recipe, iterative, kept_count, next_masks, prunable  # noqa: E402

RECIPE = Recipe(rounds=3, epochs=3, retrain=2, size=20, share=0.3)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(144, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3)),
    )


def samples(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 110)
    patterns = rng.standard_normal((3, 1, 8, 8))
    return (patterns[labels] + rng.standard_normal((110, 1, 8, 8))).astype(np.float32), labels


def noisy(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=random)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@given(st.integers(0, 1000), st.sampled_from(["network", "layer"]), st.floats(0, 0.9))
@example(0, "network", 0.2)
@example(0, "layer", 0.2)
def test_masks_are_nested_exact_and_of_the_largest(seed, per, share):
    model = network(seed)
    weights = prunable(model)
    assert list(weights) == ["0.weight", "4.weight", "7.weight"]
    if seed % 2:
        # ties, and survivors that are zero
        for p in weights.values():
            p.data = (p.data * 8).round()
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights.items()}
    groups = [list(weights)] if per == "network" else [[name] for name in weights]
    for number in range(1, 5):
        before, masks = masks, next_masks(model, masks, number, share, per)
        for names in groups:
            sizes = sum(masks[name].numel() for name in names)
            assert sum(int(masks[name].sum()) for name in names) == kept_count(sizes, share, number)
            left = torch.cat([weights[name].abs()[masks[name]] for name in names])
            gone = torch.cat([weights[name].abs()[before[name] & ~masks[name]] for name in names])
            assert not len(left) or not len(gone) or left.min() >= gone.max()
        assert all(not (masks[name] & ~before[name]).any() for name in masks)


def test_kept_fractions():
    assert [round(100 * kept_count(61470, 0.2, n) / 61470, 1) for n in (0, 1, 4, 10, 14, 15)] == [
        *(100.0, 80.0, 41.0, 10.7, 4.4, 3.5)
    ]


@pytest.mark.parametrize("per", ["network", "layer"])
def test_rounds(tmp_path, per):
    model, told = network(), []
    recipe = Recipe(**{**vars(RECIPE), "per": per})
    state = torch.get_rng_state()
    for made in iterative(model, *samples(), recipe, tmp_path, progress=lambda *args: told.append(args)):
        weights = prunable(model)
        assert made.weights == 36 + 144 * 12 + 12 * 3 and not model.training
        assert all(not weights[name][~mask].any() for name, mask in made.masks.items())
        if per == "network":
            assert made.kept == kept_count(made.weights, 0.3, made.number)
        else:
            assert made.kept == sum(kept_count(p.numel(), 0.3, made.number) for p in weights.values())
    assert [(number, epoch) for number, epoch, _ in told] == [(0, 1), (0, 2), (0, 3)] + [
        (number, epoch) for number in (1, 2, 3) for epoch in (1, 2)
    ]
    assert told[2][2] < told[0][2]
    # biases and norms are trained and none of them is zero
    assert all(p.all() for name, p in model.named_parameters() if name not in prunable(model))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 9])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, stop):
    class Stopped(Exception):
        pass

    whole, inputs = network(), samples()
    for made in iterative(whole, *inputs, RECIPE, tmp_path / "whole", noisy):
        last = made.masks
    left = stop

    def progress(number, epoch, loss):
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    begun = network()
    with pytest.raises(Stopped):
        for _ in iterative(begun, *inputs, RECIPE, tmp_path / "parts", noisy, progress):
            pass
    # another process would have drawn other numbers since, and left a part of a file
    torch.rand(7)
    (tmp_path / "parts" / ".epoch.safetensors.tmp").write_bytes(b"part")
    again = network()
    rounds = list(iterative(again, *inputs, RECIPE, tmp_path / "parts", noisy))
    assert [made.number for made in rounds] == [0, 1, 2, 3]
    assert bits(again) == bits(whole)
    assert all(torch.equal(rounds[-1].masks[name], mask) for name, mask in last.items())
    for number in range(4):
        name = f"round {number:02d}.safetensors"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_finished_rounds_are_read_and_more_can_follow(tmp_path):
    first = network()
    found = [bits(first) for _ in iterative(first, *samples(), RECIPE, tmp_path)]
    told, again = [], network()
    more = Recipe(**{**vars(RECIPE), "rounds": 4})
    read = [bits(again) for _ in iterative(again, *samples(), more, tmp_path, progress=lambda *args: told.append(args))]
    assert read[:4] == found and {number for number, _, _ in told} == {4}


def test_files_of_another_configuration_are_refused(tmp_path):
    inputs = samples()
    next(iterative(network(), *inputs, RECIPE, tmp_path))
    for other, message in (
        ((network(), *inputs, Recipe(**{**vars(RECIPE), "rate": 0.01})), "in rate"),
        ((network(), *inputs, Recipe(**{**vars(RECIPE), "per": "layer"})), "in per"),
        ((network(1), *inputs, RECIPE), "in start"),
        ((network(), *samples(1), RECIPE), "in data"),
    ):
        with pytest.raises(ValueError, match=f"another configuration, {message}"):
            next(iterative(*other, tmp_path))
    with pytest.raises(ValueError, match="another configuration, in augment"):
        next(iterative(network(), *inputs, RECIPE, tmp_path, noisy))
    path = tmp_path / "round 00.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged"):
        next(iterative(network(), *inputs, RECIPE, tmp_path))


def test_errors(tmp_path):
    for fields, message in (
        ({"rounds": -1}, "rounds must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"share": 1.0}, "share must be in"),
        ({"per": "neuron"}, "per must be"),
        ({"momentum": 1.0}, "momentum in"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**fields)
    x, y = samples()
    with pytest.raises(ValueError, match="inputs must be as many as labels"):
        next(iterative(network(), x, y[:-1], RECIPE, tmp_path))
    with pytest.raises(ValueError, match="no linear"):
        prunable(nn.ReLU())
    with pytest.raises(FloatingPointError, match="smaller rate"):
        next(iterative(network(), x, y, Recipe(**{**vars(RECIPE), "rate": 1e30}), tmp_path / "far"))

"""Model inversion: iterates move, images come back where they can, nothing of the model changes, weak attacks show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nettrim.privacy.inversion import Attack, choose_weight, invert, neighbours, total_variation  # noqa: E402
from nettrim.privacy.layers import evaluation, passage, represent, whitening  # noqa: E402

SHAPE = (1, 12, 12)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(144, 60), nn.ReLU(), nn.Dropout(0.5), nn.Linear(60, 5)),
    )
    with torch.no_grad():
        model(torch.randn(64, *SHAPE))
    return model


def squares(count: int = 3, seed: int = 0) -> torch.Tensor:
    """White rectangles on black."""
    rng, x = np.random.default_rng(seed), torch.zeros(count, *SHAPE)
    for image in x:
        top, left = rng.integers(1, 6, 2)
        image[0, top : top + 5, left : left + 4] = 1
    return x


def target(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), evaluation(model):
        return represent(model, layer, x)


def decibels(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return -10 * (made - true).flatten(1).square().mean(1).clamp_min(1e-10).log10()


def test_total_variation():
    x = torch.zeros(1, 2, 5, 5)
    flat = 50 * 1e-4
    assert total_variation(x).item() == pytest.approx(flat, rel=1e-5)
    x[0, 0, 2, 2] = 1
    # the pixel sees both of its next ones; the two before it one difference each: isotropic, not 4
    assert total_variation(x).item() == pytest.approx(2**0.5 + 2, abs=1.1 * flat)
    x.requires_grad_()
    total_variation(x).sum().backward()
    assert x.grad.isfinite().all()


def test_representations_of_any_module():
    model, x = network().eval(), squares()
    assert torch.equal(represent(model, "0", x), model[0](x))
    assert torch.equal(represent(model, "5", x), model[:6](x))
    nested = nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": model})["inner"])
    assert torch.equal(represent(nested, "1.8", x), model(x))
    assert not any(module._forward_hooks for module in nested.modules())
    with pytest.raises(ValueError, match="layer must be one of 0, 1"):
        represent(model, "fc1", x)
    model.unused = nn.Linear(1, 1)
    model.forward = lambda inputs: model[0](inputs)
    with pytest.raises(ValueError, match="does not call 'unused'"):
        represent(model, "unused", x)


@pytest.mark.parametrize("aware", [False, True])
def test_images_come_back_from_a_convolution(aware):
    model, x = network(), squares()
    attack = Attack(1e-5, 250, restarts=2, aware=aware)
    found = invert(model, "0", target(model, "0", x), SHAPE, attack)
    assert (decibels(found.images, x) > 30).all()
    assert (found.feature_error < 1e-3).all() and (found.objective < 1e-2).all()
    assert found.images.min() >= 0 and found.images.max() <= 1
    error = (target(model, "0", found.images) - target(model, "0", x)).flatten(1).square().sum(1)
    torch.testing.assert_close(
        found.feature_error, (error / target(model, "0", x).flatten(1).square().sum(1)).double(), rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_a_start_at_an_end_of_the_range_moves(colour):
    # every pixel of the blank start is at a bound, and none is frozen there
    model, x = network(), squares()
    blank = torch.full(SHAPE, colour)
    attack = Attack(1e-5, 250, restarts=1, spread=0.0)
    found = invert(model, "0", target(model, "0", x), SHAPE, attack, blank)
    assert (decibels(found.images, x) > decibels(blank[None].expand_as(x), x) + 15).all()
    # pixels that have left the range and belong inside come back: noise far beyond it, put at its ends
    wild = invert(model, "0", target(model, "0", x), SHAPE, replace(attack, spread=50.0))
    assert (decibels(wild.images, x) > 25).all()


def test_nothing_of_the_model_changes():
    model, x = network(), squares()
    model.train()
    model[5].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    invert(model, "5", target(model, "5", x), SHAPE, Attack(1e-4, 5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 7]
    assert all(p.grad is None for p in model.parameters())


def test_found_by_the_seed_and_by_the_objective():
    model, x = network(), squares()
    made = target(model, "5", x)
    attack = Attack(1e-4, 40, restarts=3)
    state = torch.get_rng_state()
    first, second = (invert(model, "5", made, SHAPE, attack) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(invert(model, "5", made, SHAPE, replace(attack, seed=1)).images, first.images)
    # an image alone is found as it is among others
    alone = invert(model, "5", made[1:2], SHAPE, attack)
    torch.testing.assert_close(alone.objective, first.objective[1:2], rtol=1e-2, atol=1e-5)
    # the first of three starts is the only one of one
    one = invert(model, "5", made, SHAPE, replace(attack, restarts=1))
    assert (first.objective <= one.objective + 1e-6).all()


def test_the_weight_is_chosen_by_the_error_of_the_pixels():
    model, x = network(), squares(4)
    weights = (10.0, 1e-4)
    attack, found = choose_weight(model, "0", x, Attack(0.0, 60, restarts=1), weights)
    assert attack.weight == 1e-4 and found[1] > found[0] + 10
    again = invert(model, "0", target(model, "0", x), SHAPE, attack)
    assert found[1] == pytest.approx(float(decibels(again.images, x).mean()), abs=1e-3)


@given(st.integers(0, 1000), st.integers(1, 8))
@example(0, 8)
@example(1, 3)
def test_whitening_is_the_smallest_change_of_the_inputs(seed, rank):
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 20)) * (np.arange(20) % 3 > 0)
    # an output without weights, and one of another size, which changes none of the solutions
    K[2], size = 0, np.where(np.arange(8) == 5, 1e4, 1.0)
    layer = nn.Linear(20, 8).double()
    layer.weight.data = torch.from_numpy(size[:, None] * K)
    model = nn.Sequential(layer)
    r = K @ rng.standard_normal(20)
    smallest = np.linalg.norm(np.linalg.pinv(K, 1e-6) @ r)
    assert np.linalg.norm(whitening(model, "0").numpy() @ (size * r)) == pytest.approx(smallest, rel=1e-3)
    found = passage(model, "0")
    assert (found.outputs, found.alive, found.inputs, found.used) == (8, 7, 20, 13)
    assert found.rank == min(rank, 7)


def test_the_aware_attacker_sees_past_scales():
    # outputs of tiny weights tell as much of the image as the others, once they are weighed by what passes
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(144, 120)), squares(4)
    model[1].weight.data[10:] *= 1e-3
    made = target(model, "1", x)
    plain, aware = (invert(model, "1", made, SHAPE, Attack(1e-4, 150, restarts=1, aware=a)) for a in (False, True))
    assert (decibels(aware.images, x) > decibels(plain.images, x) + 3).all()
    with pytest.raises(TypeError, match="must be a linear layer or a convolution"):
        invert(network(), "2", target(network(), "2", x), SHAPE, Attack(aware=True))
    # of no weights there is nothing to weigh
    model[1].weight.data[:] = 0
    assert not whitening(model, "1").any() and passage(model, "1").rank == 0
    assert invert(model, "1", target(model, "1", x), SHAPE, Attack(1e-4, 5, aware=True)).images.isfinite().all()


def test_neighbours_are_the_nearest_in_representation():
    model, public = network(), squares(12, seed=1)
    made = target(model, "5", public[[3, 7]])
    for aware in (False, True):
        assert torch.equal(neighbours(model, "5", made, public, 1, aware), public[[3, 7]])
        torch.testing.assert_close(neighbours(model, "5", made, public, 12, aware), public.mean(0).expand(2, *SHAPE))
    started = invert(model, "5", made, SHAPE, Attack(1e-4, 5, spread=0.0), neighbours(model, "5", made, public, 1))
    assert (decibels(started.images, public[[3, 7]]) > 15).all()
    with pytest.raises(ValueError, match="count must be between 1 and the 12"):
        neighbours(model, "5", made, public, 13)


def test_errors():
    model, x = network(), squares()
    made = target(model, "5", x)
    for call, message in (
        (lambda: Attack(iterations=0), "iterations must be"),
        (lambda: Attack(weight=-1.0), "weight must be"),
        (lambda: Attack(rate=0.0), "rate must be"),
        (lambda: Attack(low=1.0, high=1.0), "low must be below high"),
        (lambda: invert(model, "5", made[:, :10], SHAPE, Attack()), "target must be"),
        (lambda: invert(model, "5", made, SHAPE, Attack(), torch.zeros(1, 5, 5)), "around must be"),
        (lambda: choose_weight(model, "5", x, Attack(), ()), "weights must have"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FloatingPointError, match="smaller rate"):
        invert(model, "5", torch.full_like(made, torch.nan), SHAPE, Attack(iterations=1))


# how near images are, and whether an attack was strong enough


def test_images_are_measured():
    images = pytest.importorskip("nettrim.privacy.images")
    pytest.importorskip("skimage")
    true = squares(3).numpy()
    made = np.clip(true + 0.1 * np.random.default_rng(0).standard_normal(true.shape).astype(np.float32), 0, 1)
    np.testing.assert_allclose(images.psnr(made, true), -10 * np.log10(((made - true) ** 2).mean((1, 2, 3))), rtol=1e-4)
    np.testing.assert_allclose(images.psnr(10 * made, 10 * true, 10.0), images.psnr(made, true), rtol=1e-4)
    assert images.psnr(true, true).tolist() == [100.0] * 3 and images.ssim(true, true).tolist() == [1.0] * 3
    assert (images.ssim(made, true) < 1).all()
    np.testing.assert_array_equal(images.psnr(made[0], true), images.psnr(np.stack([made[0]] * 3), true))
    for call, message in (
        (lambda: images.psnr(made[:2], true), "images must be of the shape of true"),
        (lambda: images.psnr(made, true, 0.0), "span must be positive"),
        (lambda: images.psnr(true.astype(int), true), "images must be an array of a floating dtype"),
        (lambda: images.ssim(made[..., :5], true[..., :5]), "at least 7 pixels"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_the_gate():
    from nettrim.privacy.images import TOO_WEAK, gate

    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 30)
    blank, mean = 8 + hard, 10.5 + hard
    strong = gate(15 + hard + rng.normal(0, 1, 30), blank, mean)
    assert strong.passed and strong.read("15") == "15"
    # paired: the images differ by more than the margin
    assert strong.margins[1] == pytest.approx(4.5, abs=0.7) and strong.halves[1] < 0.6
    # beating one of the two is not enough, nor is a margin that chance explains, nor one image
    assert not gate(9.5 + hard, blank, mean).passed
    assert not gate(10.8 + hard + rng.normal(0, 3, 30), blank, mean).passed
    assert not gate(mean, blank, mean).passed and not gate([20.0], [10.0]).passed
    assert gate([20.0], [10.0]).read("20") == TOO_WEAK == "attack too weak"
    with pytest.raises(ValueError, match="baselines must have 30"):
        gate(hard, hard[:3])
    with pytest.raises(ValueError, match="at least one such list"):
        gate(hard)


def test_grids_are_figures(tmp_path):
    pytest.importorskip("matplotlib")
    from nettrim.privacy.images import grid

    gray, colour = np.zeros((1, 8, 8)), np.zeros((3, 8, 8))
    figure = grid([[gray, colour, gray], [colour, gray, gray]], ["a", "b"], ["1", "2", "3"], (0.0, 1.0))
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "grid.png")
    for rows, message in (([[gray]], "1 lists of 2 images"), ([[gray, np.zeros((2, 8, 8))]], r"\(1, H, W\)")):
        with pytest.raises(ValueError, match=message):
            grid(rows, ["a"], ["1", "2"], (0.0, 1.0))


@pytest.mark.parametrize("aware", [False, True])
def test_a_search_that_is_stopped_goes_on_bit_for_bit(tmp_path, aware):
    from nettrim.privacy.checkpoints import Checkpoint

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    images = torch.rand(2, 1, 8, 8)
    target = represent(model, "0", images).detach()
    attack = Attack(1e-4, 12, restarts=2, aware=aware)
    whole = invert(model, "0", target, (1, 8, 8), attack)
    path, pieces = tmp_path / "search", 0
    while True:
        pieces += 1
        torch.rand(pieces)
        try:
            made = invert(model, "0", target, (1, 8, 8), attack, None, Checkpoint(path, {}, stop, 0.0))
            break
        except Stopped:
            assert pieces < 20
    assert pieces == 13 and torch.equal(made.images, whole.images) and torch.equal(made.objective, whole.objective)
    # the state of another search is no start for this one
    with pytest.raises(ValueError, match="another configuration, in attack"):
        invert(model, "0", target, (1, 8, 8), Attack(1e-3, 12, restarts=2, aware=aware), None, Checkpoint(path))
    with pytest.raises(ValueError, match="weights must be one with a checkpoint"):
        choose_weight(model, "0", images, attack, (1e-3, 1e-4), None, Checkpoint(path))

"""Studies in pieces: stopped after any part they go on, and end with the records of one that was not stopped."""

from __future__ import annotations

import itertools
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("safetensors")

from nettrim import cli  # noqa: E402
from nettrim.privacy.checkpoints import Checkpoint, state_digest  # noqa: E402
from nettrim.studies import inversion, leakage  # noqa: E402
from nettrim.studies.pieces import UNIT, Clock, Paused, Units  # noqa: E402
from nettrim.studies.records import Records  # noqa: E402
from nettrim.studies.victims import Victim, chosen, exact  # noqa: E402

#: of a record, what a clock tells and not the study
TIMES = {"environment", "seconds", "all"}


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_clock_stops_before_the_time_is_up():
    time = Time()
    clock = Clock(1.0, time)
    for seconds in (10, 5, 15, 14):
        time.now += seconds
        clock.check()
    time.now += 2
    # 46 s are over, and a part may take 15
    with pytest.raises(Paused):
        clock.check()


def test_a_piece_does_one_part_at_the_least():
    time = Time()
    clock = Clock(1.0, time)
    time.now += 600
    with pytest.raises(Paused):
        clock.check()
    Clock(None, time).check()
    for minutes in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="minutes must be positive"):
            Clock(minutes)


def test_parts_are_made_once(tmp_path):
    def units() -> Units:
        return Units(Records(tmp_path / "parts.jsonl", UNIT), "a row", tmp_path / "w")

    calls: list[str] = []

    def make(state: Checkpoint) -> dict[str, float]:
        calls.append("once")
        state.save({"x": {"y": torch.zeros(1)}}, step=1)
        return {"value": 1 / 3}

    assert units().once("part", make) == units().once("part", make) == {"value": 1 / 3} and calls == ["once"]
    assert units().once("other", make) == {"value": 1 / 3} and len(calls) == 2
    # states of parts that are finished are gone
    assert list((tmp_path / "w").iterdir()) == []

    def train(model: torch.nn.Module, state: Checkpoint) -> list[int]:
        calls.append("trained")
        with torch.no_grad():
            model.weight.fill_(0.1)
        return [1, 2]

    models = [torch.nn.Linear(2, 2) for _ in range(2)]
    assert [units().network("net", model, train) for model in models] == [[1, 2], [1, 2]]
    assert calls.count("trained") == 1 and (models[1].weight == 0.1).all()
    assert state_digest(models[0]) == state_digest(models[1])
    units().place("layers").mkdir()
    other = Units(units().kept, "another row", tmp_path / "w")
    other.network("net", torch.nn.Linear(2, 2), train)
    units().forget()
    assert len(list((tmp_path / "w").iterdir())) == 1


def test_a_part_that_is_paused_goes_on_from_its_state(tmp_path):
    time = Time()

    def units(minutes: float) -> Units:
        return Units(Records(tmp_path / "parts.jsonl", UNIT, Clock(minutes, time)), "a row", tmp_path)

    def count(state: Checkpoint) -> int:
        found = state.load()
        done = 0 if found is None else found[1]["step"]
        for step in range(done + 1, 4):
            time.now += 50
            state.save({"x": {"y": torch.zeros(1)}}, step=step)
        return done

    for _ in range(3):
        with pytest.raises(Paused):
            units(1.0).once("part", count)
    # the last piece has only found that nothing was left
    assert units(1.0).once("part", count) == 3


def pieces_of(folder, study: str, preset: str, minutes: str) -> int:
    """Run a study by the command, each time for one part or a little longer; how many times that took."""
    for pieces in itertools.count(1):
        code = cli.main(["study", study, "--preset", preset, "-o", str(folder), "--minutes", minutes])
        if code == 0:
            return pieces
        assert code == 2 and pieces < 500
    raise AssertionError("never")


def rows_of(folder, study: str, preset: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / f"{study}.{preset}.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("study, minutes, least", [("inversion", "0.0001", 30), ("leakage", "0.02", 5)])
def test_resnet18_in_pieces(tmp_path, capsys, study, minutes, least):
    whole = ["study", study, "--preset", "smoke-cifar10", "-o", str(tmp_path / "whole"), "--device", "auto"]
    assert cli.main(whole) == 0
    assert pieces_of(tmp_path / "parts", study, "smoke-cifar10", minutes) > least
    assert "not finished: the time is up" in capsys.readouterr().err
    made = rows_of(tmp_path / "parts", study, "smoke-cifar10")
    assert made == rows_of(tmp_path / "whole", study, "smoke-cifar10")
    # networks and states of rows that are finished are gone
    left = {path.name for path in (tmp_path / "parts" / "weights").iterdir() if path.suffix == ".safetensors"}
    assert len(left) <= 1
    if study == "leakage":
        refused = [row for row in made if "refused" in row]
        assert [row["method"] for row in refused] == ["coreset, neurons"]
        assert all(("epsilon =" in row["privacy"]) == ("DP-SGD" in row["method"]) for row in made if row not in refused)


def test_rows_of_two_networks_are_refused(tmp_path, capsys):
    path = tmp_path / "leakage.smoke-cifar10.jsonl"
    records = Records(path, leakage.KEY)
    recipe = leakage._recipe(leakage.PRESETS["smoke-cifar10"])
    records.add(method="dense", kept=1.0, seed=0, recipe=recipe, network="another")
    assert cli.main(["study", "leakage", "--preset", "smoke-cifar10", "-o", str(tmp_path)]) == 1
    assert "rows of another trained network" in capsys.readouterr().err


def test_devices_and_victims(capsys):
    assert chosen("cpu").type == "cpu" and chosen("auto").type in ("cpu", "cuda")
    for device, message in (("tpu", "must be"), ("meta", "must be"), ("cuda:99", "finds no GPU|must be")):
        if device != "cuda:99" or not torch.cuda.is_available():
            with pytest.raises(ValueError, match=message):
                chosen(device)
    before = torch.backends.cudnn.allow_tf32
    with exact():
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 == before
    assert cli.main(["study", "pruners", "--device", "cpu"]) == 1
    assert "--device" in capsys.readouterr().err
    for fields, message in (
        ({"network": "vgg"}, "network must"),
        ({"width": 0}, "width must"),
        ({"norm": "x"}, "norm"),
    ):
        with pytest.raises(ValueError, match=message):
            Victim(**fields)
    full = Victim("resnet18").build(0)
    assert sum(p.numel() for p in full.parameters()) == 11_173_962
    assert sum(p.numel() for p in Victim().build(0).parameters()) == 61_706
    assert Victim("resnet18", 8, "group").build(0)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_presets_for_a_gpu():
    for study in (inversion, leakage):
        preset = study.PRESETS["paper-cifar10" if study is inversion else "paper"]
        victim = preset.victim if study is inversion else preset.setting.victim
        recipe = preset.recipe if study is inversion else preset.setting.recipe
        assert (victim.network, victim.width, preset.device) == ("resnet18", 64, "auto")
        assert preset.data.removeprefix("raised ") == "cifar10"
        assert (recipe.epochs, recipe.retrain, recipe.rate, recipe.momentum, recipe.size) == (150, 5, 0.05, 0.9, 256)
        assert preset.layers == ("conv2-1", "conv2-2", "conv3-1", "conv3-2", "conv4-1")
    # names of earlier records: what they were made by has not changed
    assert leakage._recipe(leakage.PRESETS["cpu"]) == "4d3aeb6c"
    assert inversion._recipes(inversion.PRESETS["cpu"]) == ("e159cca0", "831b9b0e")

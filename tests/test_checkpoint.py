"""Checkpoints: a solve that was stopped goes on as if it had not been; what is damaged or another's is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from instances import KINDS, random_problem

import nettrim as nt
from nettrim import checkpoint, diskplan
from nettrim.fingerprint import fingerprint

N, M, P = 12, 5, 300
#: some hundred iterations, more than the interruptions below leave
HOW: dict = {"method": "admm", "polish": False, "gap_tol": 2e-2, "feas_tol": 5e-3}


def every_tenth(self: checkpoint.Keeper, state: Any, iterations: int, samples: Any) -> None:
    """In the place of `Keeper.keep`, which looks at the clock; in the middle between two checks."""
    if iterations % 10 == 7:
        self.write(state, samples, iterations)


@pytest.fixture(autouse=True, scope="module")
def hasty():
    """Many checkpoints, that no power failure threatens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(checkpoint.Keeper, "keep", every_tenth)
        yield


def problem(kind: str = "relu", **options) -> nt.Problem:
    return random_problem(np.random.default_rng(4), N, M, P, **({"epsilon": 0.05} | KINDS[kind] | options))


def stopped_at(p: nt.Problem, folder: Path, iteration: int, **more) -> None:
    """Run until the process would have died: the checkpoint is that of the iteration before."""

    class Died(Exception):
        """As if by a signal."""

    def callback(row: dict) -> None:
        if row["iteration"] >= iteration:
            raise Died

    with pytest.raises(Died):
        nt.Solver(p, checkpoint=folder, callback=callback, **(HOW | more)).solve()


def on_disk(p: nt.Problem, folder: Path) -> nt.Problem:
    for name in "XY":
        np.save(folder / f"{name}.npy", getattr(p, name).T)
    X, Y = (nt.Chunked(folder / f"{name}.npy", "rows") for name in "XY")
    return nt.Problem(X, Y, epsilon_abs=p.epsilon, omega="linear" if p.linear else "active", C=p.C)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_goes_on_as_if_it_had_not_been_stopped(tmp_path, kind, dtype):
    p = problem(kind, dtype=dtype)
    whole = nt.Solver(p, **HOW).solve()
    assert whole.status == nt.Status.SOLVED and whole.iterations > 20
    stopped_at(p, tmp_path / "run", 20 * (whole.iterations // 40) or 20)
    again = nt.Solver(p, checkpoint=tmp_path / "run", **HOW).solve()
    np.testing.assert_array_equal(again.W, whole.W)
    assert again.iterations == whole.iterations and again.certificate == whole.certificate
    # nothing is left of what is solved
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", ["memory", "disk"])
def test_goes_on_where_the_samples_are_now(tmp_path, first, monkeypatch):
    monkeypatch.setattr(diskplan, "_SLOT_BYTES", 10_000)
    monkeypatch.setattr(diskplan, "_USEFUL", 1000)
    monkeypatch.setattr(checkpoint, "_MEMBER", 3000)
    p = problem()
    room = sum(diskplan.plan(N, M, P, 8, 1e9).fixed.values()) + 15_000
    d = on_disk(p, tmp_path)
    assert fingerprint(d) == fingerprint(p)
    whole = nt.Solver(p, **HOW).solve()
    order = [(p, {}), (d, {"memory": room})]
    (a, how_a), (b, how_b) = order if first == "memory" else order[::-1]
    stopped_at(a, tmp_path / "run", 60, **how_a)
    solver = nt.Solver(b, checkpoint=tmp_path / "run", **HOW, **how_b)
    again = solver.solve()
    assert again.iterations == whole.iterations
    np.testing.assert_allclose(again.W, whole.W, rtol=1e-9, atol=1e-9)


def test_a_limit_leaves_a_checkpoint_and_its_end_takes_it_away(tmp_path):
    p, run = problem(), tmp_path / "run"
    limited = nt.Solver(p, checkpoint=run, max_iterations=40, **HOW).solve()
    assert limited.status != nt.Status.SOLVED and (run / "state.npz").exists()
    assert len(list(run.iterdir())) == 2
    # a setting that is not part of the problem may differ
    again = nt.Solver(p, checkpoint=run, check_every=10, **HOW).solve()
    assert again.status == nt.Status.SOLVED and again.iterations > 40
    assert not run.exists()


def test_a_penalty_with_a_memory(tmp_path):
    p = problem().replace(penalty="total_variation:shape=12")
    whole = nt.Solver(p, **HOW).solve()
    assert whole.iterations > 20
    stopped_at(p, tmp_path / "run", 20)
    again = nt.Solver(p, checkpoint=tmp_path / "run", **HOW).solve()
    np.testing.assert_array_equal(again.W, whole.W)


CHANGES = {
    "epsilon": lambda p: p.replace(epsilon=0.06),
    "C": lambda p: p.replace(C=2.0),
    "penalty": lambda p: p.replace(penalty="rows"),
    "neuronwise": lambda p: p.replace(neuronwise=True),
    "V": lambda p: p.replace(V=0.1),
    "X": lambda p: p.replace(X=np.where(np.arange(P) == 77, 1.0000001, 1) * p.X),
    "order": lambda p: p.replace(X=p.X[:, ::-1].copy(), Y=p.Y[:, ::-1].copy()),
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_another_problems_is_refused(tmp_path, what):
    stopped_at(problem(), tmp_path / "run", 40)
    other = CHANGES[what](problem())
    assert fingerprint(other) != fingerprint(problem())
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(ValueError, match="holds the checkpoint of another problem"):
        nt.Solver(other, checkpoint=tmp_path / "run", **HOW).solve()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A checkpoint, its bytes, and the weights that the whole solve ends with."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    p = problem()
    stopped_at(p, folder, 60)
    return folder, {path: path.read_bytes() for path in folder.iterdir()}, nt.Solver(p, **HOW).solve().W


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1), st.floats(0, 0.9999), st.integers(-1, 7))
@example(0, 0.0, -1)
@example(1, 0.5, -1)
@example(0, 0.3, 3)
@example(1, 0.9, 5)
def test_truncated_or_flipped_is_an_error_or_the_same_answer(kept, which, place, bit):
    folder, whole, W = kept
    for path, data in whole.items():
        path.write_bytes(data)
    for path in set(folder.iterdir()) - set(whole):
        path.unlink()
    path = sorted(whole)[which]
    damaged = bytearray(whole[path])
    if bit < 0:
        damaged = damaged[: int(place * len(damaged))]
    else:
        damaged[int(place * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    solver = nt.Solver(problem(), checkpoint=folder, **HOW)
    try:
        found = solver.solve()
    except ValueError as error:
        assert str(folder) in str(error)
        # what is damaged is not deleted either
        assert (folder / "state.npz").exists()
    else:
        np.testing.assert_array_equal(found.W, W)
    folder.mkdir(exist_ok=True)


def rewritten(folder: Path, **changes) -> None:
    """Other values in the text of a checkpoint, with a checksum that fits."""
    with np.load(folder / "state.npz") as old:
        arrays = dict(old)
    about = json.loads(str(arrays["about"])) | changes
    text = checkpoint.to_json(about)
    arrays |= {
        "about": np.array(text),
        "checksum": np.array(checkpoint.hashlib.sha256(text.encode()).hexdigest()),
    }
    np.savez(folder / "state.npz", **arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "written in format 99, by nettrim .*; this version reads format 1"),
        ({"tau": -1.0}, "no checkpoint"),
        ({"r": None}, "no checkpoint"),
        ({"parts": []}, "no checkpoint"),
        ({"parts": [{"first": 0, "last": P, "width": P, "stamp": "../../x", "digests": ["0"]}]}, "no checkpoint"),
        ({"parts": [{"first": 0, "last": P, "width": P, "stamp": "gone", "digests": ["0"]}]}, "is not there"),
        ({"digests": {}}, "damaged"),
    ],
)
def test_values_that_make_no_sense(tmp_path, changes, words):
    stopped_at(problem(), tmp_path / "run", 20)
    rewritten(tmp_path / "run", **changes)
    with pytest.raises(ValueError, match=words):
        nt.Solver(problem(), checkpoint=tmp_path / "run", **HOW).solve()


def test_a_full_disk_is_a_warning_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    writing, calls = checkpoint.Writer.write, []

    def full(self, first, values):
        calls.append(first)
        if len(calls) > 2:
            (folder / f"samples-0-{P}-half.npz").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writing(self, first, values)

    monkeypatch.setattr(checkpoint.Writer, "write", full)
    with pytest.warns(UserWarning, match="could not be written, and the solve goes on: No space left"):
        limited = nt.Solver(problem(), checkpoint=folder, max_iterations=40, **HOW).solve()
    assert limited.iterations == 40 and len(calls) > 3
    monkeypatch.undo()
    assert not list(folder.glob("*half*"))
    whole = nt.Solver(problem(), **HOW).solve()
    again = nt.Solver(problem(), checkpoint=folder, **HOW).solve()
    np.testing.assert_array_equal(again.W, whole.W)


PROGRAM = """
import sys
import os
import numpy as np, nettrim as nt
os.fsync = lambda handle: None
sys.path.insert(0, "tests")
from nettrim import checkpoint
from test_checkpoint import HOW, every_tenth, problem
checkpoint.Keeper.keep = every_tenth
def callback(row):
    print(row["iteration"], flush=True)
print(nt.Solver(problem(), checkpoint=sys.argv[1], callback=callback, **HOW).solve().iterations)
"""


def test_a_killed_process(tmp_path):
    """SIGKILL, at any moment: also while a checkpoint is being written."""
    whole = nt.Solver(problem(), **HOW).solve()
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        while int(process.stdout.readline()) < 40:
            pass
        process.send_signal(signal.SIGKILL)
    rows: list[int] = []
    how = {"checkpoint": tmp_path / "run", "callback": lambda row: rows.append(row["iteration"])}
    again = nt.Solver(problem(), **how, **HOW).solve()
    assert rows[0] > 20, "it began again"
    np.testing.assert_array_equal(again.W, whole.W)


def test_settings_and_what_takes_several_solves(tmp_path):
    (tmp_path / "file").write_text("")
    p = problem()
    with pytest.raises(ValueError, match="checkpoint must be a folder"):
        nt.Settings(checkpoint=tmp_path / "file")
    with pytest.raises(ValueError, match="checkpoint is for ADMM"):
        nt.Settings(checkpoint=tmp_path, method="working_set")
    for call in (
        lambda: nt.sparsest(p.X, p.Y, 0.1, checkpoint=tmp_path),
        lambda: nt.path(p.X, p.Y, [0.1, 0.2], checkpoint=tmp_path),
        lambda: nt.solve(p.X, p.Y, density=0.5, checkpoint=tmp_path),
    ):
        with pytest.raises(ValueError, match="checkpoint is for a single solve"):
            call()
    network = [nt.Layer(np.ones((M, N)), relu=False, name="only")]
    with pytest.raises(ValueError, match="not for layers of a network"):
        nt.prune(network, p.X.T.copy(), 0.1, checkpoint=tmp_path)

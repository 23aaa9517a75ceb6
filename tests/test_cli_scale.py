"""The command line past one machine's memory: samples left in their file, checkpoints, layers over a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim import cli
from nettrim.archives import open_npz

CERTIFIED, USAGE, NOT_CONVERGED = 0, 1, 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a layer in in.npz, samples in rows and in columns."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = np.vstack([rng.standard_normal((19, 600)), np.ones((1, 600))])
    W = rng.standard_normal((20, 5)) * (rng.random((20, 5)) < 0.5)
    Y = np.maximum(W.T @ X, 0)
    np.savez("in.npz", X=X, Y=Y)
    np.savez("rows.npz", X=np.asfortranarray(X), Y=np.asfortranarray(Y), omega=Y > 0, V=np.zeros(()))
    np.savez_compressed("small.npz", X=X, Y=Y)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process: (exit code, standard output, standard error)."""

    def call(*given: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in given])
        return code, *capsys.readouterr()

    return call


def weights(path: str) -> np.ndarray:
    with np.load(path) as bundle:
        return bundle["W"]


ROUGH = ("--epsilon", "0.1", "--method", "admm", "--gap-tol", "0.01", "--feas-tol", "0.01")


@pytest.mark.parametrize("name", ["in.npz", "rows.npz"])
def test_samples_are_left_in_their_file(folder, run, name):
    code, _, err = run("solve", name, "-o", "out.npz", *ROUGH, "--memory", "200MB", "--scratch", ".")
    assert code == CERTIFIED and "memory plan" in err
    assert run("solve", "in.npz", "-o", "whole.npz", *ROUGH)[0] == CERTIFIED
    np.testing.assert_allclose(weights("out.npz"), weights("whole.npz"), rtol=0.05, atol=0.02)
    code, _, err = run("verify", name, "out.npz")
    assert code == NOT_CONVERGED and "has no multipliers, as those of samples that were read in parts" in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("small.npz", "--memory", "1GB"), "X in small.npz is compressed"),
        (("in.npz", "--memory", "much"), "--memory must be bytes"),
        (("in.npz", "--scratch", "."), "--scratch is for samples that are read in parts"),
        (("in.npz", "--memory", "1GB", "--scratch", "nowhere"), "--scratch must be an existing folder"),
        (("in.npz", "--checkpoint", "in.npz"), "--checkpoint must be a folder"),
        (("in.npz", "--checkpoint", "c", "--rounds", "3"), "--checkpoint is for a single solve"),
    ],
)
def test_refused(folder, run, given, words):
    code, out, err = run("solve", *given, "-o", "out.npz", *ROUGH)
    assert code == USAGE and out == "" and words in err and "Traceback" not in err


def test_too_little_memory_shows_the_plan(folder, run):
    code, out, err = run("solve", "in.npz", "-o", "out.npz", *ROUGH, "--memory", "1MB")
    assert code == USAGE and out == "" and "memory plan" in err and "Raise memory" in err


def test_a_stopped_solve_goes_on(folder, run):
    limited = ("--checkpoint", "kept", "--max-iterations", "20")
    how = ("--epsilon", "0.1", "--method", "admm", "--gap-tol", "1e-5")
    assert run("solve", "in.npz", "-o", "out.npz", *how, *limited)[0] == NOT_CONVERGED
    assert Path("kept/state.npz").exists()
    code, _, err = run("solve", "in.npz", "-o", "out.npz", "--epsilon", "0.2", *how[2:], "--checkpoint", "kept")
    assert code == USAGE and "holds the checkpoint of another problem" in err
    code, out, _ = run("solve", "in.npz", "-o", "out.npz", *how, "--checkpoint", "kept", "--json")
    assert code == CERTIFIED and json.loads(out)["iterations"] > 20
    assert not Path("kept").exists()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "a.npz"
    a = np.arange(600.0).reshape(20, 30)
    np.savez(path, X=a, F=np.asfortranarray(a))
    return path, path.read_bytes(), a


def test_maps_are_the_arrays(bundle):
    path, whole, a = bundle
    path.write_bytes(whole)
    with open_npz(path) as archive:
        for name in "XF":
            mapped = archive.map(name)
            assert isinstance(mapped, np.memmap)
            np.testing.assert_array_equal(mapped, a)
        with pytest.raises(ValueError, match="has no array Z"):
            archive.map("Z")


@given(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), max_size=4), st.floats(0.5, 1))
@example([], 0.9)
@example([(0.0, 0)], 1.0)
@example([(0.0018, 3)], 1.0)
def test_a_damaged_file_is_refused_or_mapped_within_its_bounds(bundle, flips, part):
    path, whole, _ = bundle
    damaged = bytearray(whole[: int(part * len(whole))])
    for place, bit in flips:
        damaged[int(place * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with open_npz(path) as archive:
            for name in archive.names:
                mapped = archive.map(name)
                assert not mapped.dtype.hasobject
                # all of it is in the file
                assert mapped.nbytes <= len(damaged) and np.array(mapped).nbytes == mapped.nbytes
    except ValueError:
        return


def test_a_member_that_is_elsewhere(bundle, tmp_path):
    path = tmp_path / "lie.npz"
    np.savez(path, X=np.ones((3, 4)))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as made:
        at = made.getinfo("X.npy").header_offset
    # a longer extra field than there is
    data[at + 28 : at + 30] = struct.pack("<H", 40)
    path.write_bytes(data)
    with open_npz(path) as archive, pytest.raises(ValueError, match="X in .*lie.npz"):
        archive.map("X")


# layers over a cluster

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))
"""


@pytest.fixture
def network(folder):
    pytest.importorskip("distributed")
    pytest.importorskip("torch")
    Path("net.py").write_text(MODEL)
    np.savez("x.npz", X=np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32))
    return folder


def prune(run, output: str, *more: str):
    return run("prune", "net.py:build", "--data", "x.npz", "--epsilon", "0.1", "-o", output, *more)


def test_layers_over_processes_are_those_of_one(network, run):
    import nettrim.torch as ntt

    code, _, err = prune(run, "run", "--dask", "processes")
    assert code == CERTIFIED and "3 layers" in err
    assert {f"layer_{k:03d}.npz" for k in range(3)} < set(os.listdir("run"))
    assert prune(run, "one", "--threads", "1")[0] == CERTIFIED
    first, second = (ntt.load(f"{name}/pruned.safetensors")[0] for name in ("run", "one"))
    for key in first:
        np.testing.assert_allclose(first[key].numpy(), second[key].numpy(), rtol=1e-4, atol=1e-5)
    assert run("verify", "run")[0] == CERTIFIED
    # finished layers are taken from the folder, on a cluster too
    Path("run/layer_001.npz").unlink()
    code, _, err = prune(run, "run", "--dask", "threads")
    assert code == CERTIFIED and err.count("from an earlier run") == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--dask", "processes", "--scheme", "cascade"), "--dask is for --scheme parallel"),
        (("--dask", "somewhere"), "must be 'threads', 'processes', or an address"),
        (("--dask", "tcp://127.0.0.1:1"), "no scheduler answers at tcp://127.0.0.1:1"),
    ],
)
def test_clusters_that_are_refused(network, run, monkeypatch, given, words):
    monkeypatch.setattr("nettrim.distributed.cluster.ANSWER", 3.0)
    code, out, err = prune(run, "run", *given)
    assert code == USAGE and out == "" and words in err and "Traceback" not in err


def test_ctrl_c_keeps_the_finished_layers(network, run):
    """SIGINT to the whole group, as a terminal sends it, while layers without an end in sight are worked on."""
    command = [
        sys.executable,
        "-m",
        "nettrim.cli",
        "prune",
        "net.py:build",
        "--data",
        "x.npz",
        "-o",
        "run",
        "--epsilon",
    ]
    command += ["0.01", "--method", "admm", "--gap-tol", "1e-15", "--dask", "processes"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            for line in process.stderr:
                if "0 of 3 layers finished" in line:
                    break
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=200)
        finally:
            # whatever happened: nobody else would end it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == NOT_CONVERGED and out == ""
    assert "of 3 layers are finished, the same command goes on" in err and "Traceback" not in err

"""Samples on the workers of a real cluster, of processes: the answers are those of one machine, also after kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from instances import KINDS, random_problem

import nettrim as nt
from nettrim import checkpoint
from nettrim.distributed import ShardedProblem, connect
from nettrim.distributed import cluster as cluster_module
from nettrim.distributed import shards as shards_module
from nettrim.distributed.problem import _cuts
from nettrim.distributed.shard import Call, Shard, Total
from nettrim.distributed.site import half
from nettrim.distributed.source import source_of
from nettrim.fingerprint import fingerprint

distributed = pytest.importorskip("distributed")

N, M, P = 12, 5, 700
#: some iterations: a round trip takes some ten milliseconds on a busy machine
HOW: dict = {"method": "admm", "polish": False, "gap_tol": 2e-2, "feas_tol": 5e-3}
#: and enough checks among them to kill workers at
LONG: dict = {**HOW, "check_every": 10}


def cluster_of(count: int) -> Any:
    return distributed.LocalCluster(
        n_workers=count, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0"
    )


@pytest.fixture(scope="module")
def client():
    """Two workers, which their nannies replace when they are killed."""
    with cluster_of(2) as cluster, distributed.Client(cluster) as made:
        yield made


@pytest.fixture
def both(client):
    """The client, once two workers are there again."""
    client.wait_for_workers(2, timeout=120)
    return client


def make(kind: str = "relu", **options) -> nt.Problem:
    return random_problem(np.random.default_rng(4), N, M, P, **({"epsilon": 0.05} | KINDS[kind] | options))


def sharded(p: nt.Problem, client: Any, shards: int = 3, **options) -> ShardedProblem:
    given = {"X": p.X, "Y": p.Y, "omega": "linear" if p.linear else "active", "V": p.V if p.V.size > 1 else p.V[0, 0]}
    return ShardedProblem(
        **(given | options),
        epsilon_abs=p.epsilon,
        C=p.C,
        neuronwise=p.neuronwise,
        penalty=p.penalty,
        client=client,
        shards=shards,
    )


def same(a: nt.Solution, b: nt.Solution, tolerance: float = 1e-9) -> None:
    assert a.status == b.status and a.iterations == b.iterations
    np.testing.assert_allclose(a.W, b.W, rtol=tolerance, atol=tolerance)
    for name, value in a.certificate.to_dict().items():
        assert b.certificate.to_dict()[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name


def kill(client: Any, address: str) -> None:
    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)


# the parts, without a cluster


def test_cuts_are_at_the_ends_of_blocks():
    for P_, count in ((700, 3), (5, 8), (10_000, 7), (1, 1)):
        cuts = _cuts(P_, count)
        assert cuts[0].start == 0 and cuts[-1].stop == P_ and len(cuts) <= count
        assert all(a.stop == b.start for a, b in pairwise(cuts))
        assert all(s.start % -(-P_ // 4096) == 0 for s in cuts)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="shards must be"):
            _cuts(10, wrong)


def test_the_tree_is_one_over_shards():
    assert [half(0, n) for n in (2, 3, 4, 5, 8)] == [1, 2, 2, 4, 4]
    assert half(4, 7) == 6
    a, b = Total((np.ones(2),), (np.array([1.0, 5.0]),)), Total((np.ones(2),), (np.array([2.0, 3.0]),))
    total = a + b
    assert total.sums[0].tolist() == [2, 2] and total.peaks[0].tolist() == [2, 5] and a.sums[0].tolist() == [1, 1]


def piece_of(p: nt.Problem, **options) -> Any:
    from nettrim.distributed.shard import Piece

    given = {"omega": "active", "V": 0.0, "dtype": str(p.dtype), "first": 0, "backend": "auto", "memory": 1e9}
    X, Y = (source_of(a, "X", 0, a.shape[1]) for a in (p.X, p.Y))
    return Piece(**({"X": X, "Y": Y, "scratch": None} | given | options))


def test_a_call_that_changes_the_state_is_done_once(rng):
    p = make()
    first, second = (Shard(piece_of(p), 1) for _ in range(2))
    W = rng.standard_normal((N, M))
    calls = [Call("zero", (), 1), Call("rescale", (W, 0.0), 2), Call("project", (np.full(M, 0.5), 1.5, True), 3)]
    results = [[shard.do(call) for call in calls] for shard in (first, second)]
    # asked for again: the same, and nothing has changed
    again = first.do(calls[-1])
    for a, b in zip(again.sums, results[1][-1].sums, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.do(Call("squares")).sums[0], second.do(Call("squares")).sums[0])
    with pytest.raises(RuntimeError, match="the state is that of call 3, and the next is 5"):
        first.do(Call("advance", (W,), 5))
    # a shard that is opened anew, and does the same calls, is the same
    third = Shard(piece_of(p), 1)
    third.restore(None, 0)
    for call in calls:
        third.do(call)
    np.testing.assert_array_equal(third.do(Call("squares")).sums[0], first.do(Call("squares")).sums[0])


@pytest.mark.parametrize("samples", ["rows", "columns"])
def test_sources_open_what_was_meant(tmp_path, rng, samples):
    a = rng.standard_normal((9, 200))
    given = a.T.copy() if samples == "rows" else a
    np.save(tmp_path / "a.npy", given)
    whole = np.load(tmp_path / "a.npy", mmap_mode="r")
    part = whole[20:] if samples == "rows" else whole[2:]
    held = {
        "file": (nt.Chunked(tmp_path / "a.npy", samples), a, "map"),
        "part of a map": (nt.Chunked(part, samples), part.T if samples == "rows" else part, "map"),
        "fortran": (nt.Chunked(np.asfortranarray(given), samples), a, "array"),
        "array": (a, a, "array"),
        "dask": (nt.Chunked(pytest.importorskip("dask.array").from_array(given, chunks=40), samples), a, "array"),
    }
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = given
    held["hdf5"] = nt.Chunked(h5py.File(tmp_path / "a.h5")["a"], samples), a, "dataset"
    for name, (source, expected, kind) in held.items():
        made = source_of(source, "X", 30, 150)
        assert made.kind == kind, name
        opened = made.open()
        assert opened.shape == (expected.shape[0], 120), name
        np.testing.assert_array_equal(opened[:, 0:120], expected[:, 30:150], err_msg=name)
        np.testing.assert_array_equal(opened[:, 7:99], expected[:, 37:129], err_msg=name)


def test_a_shard_on_a_gpu_is_one_on_the_host(cupy, rng):
    p = make(dtype=np.float32)
    W, scale = rng.standard_normal((N, M)).astype(np.float32), np.full(M, 0.5, np.float32)
    calls = (
        *(Call("zero", (), 1), Call("rescale", (W, 0.0), 2), Call("project", (scale, 1.5, True), 3)),
        *(Call("advance", (W,), 4), Call("violations", (W,)), Call("measure", (W, W, scale)), Call("gram")),
        *(Call("squares"), Call("target_product"), Call("multiplier", (0.7, None))),
    )
    host, device = Shard(piece_of(p), 1), Shard(piece_of(p, backend="cupy"), 1)
    for call in calls:
        for a, b in zip(host.do(call).sums, device.do(call).sums, strict=True):
            assert isinstance(b, (np.ndarray, np.generic)), call.name
            np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-3, err_msg=call.name)


# the same answers


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equal_to_one_machine(both, kind):
    p = make(kind)
    with sharded(p, both) as q:
        found = nt.Solver(q, **HOW).solve()
        same(nt.Solver(p, **HOW).solve(), found)
        # by somebody else, from weights alone and from multipliers that are here
        assert q.zero_is_feasible == p.zero_is_feasible and q.scale == pytest.approx(p.scale)
        dual = nt.Solver(p, **HOW).solve().dual
        for weights, given in ((found.W, None), (found.W, dual)):
            a, b = nt.certify(p, weights, given).to_dict(), nt.certify(q, weights, given).to_dict()
            assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    assert found.dual is None or kind == "linear"


def test_runs_repeat_and_do_not_depend_on_the_workers(both, tmp_path):
    p = make(dtype=np.float32)
    found = []
    for layout in ([0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0]):
        with sharded(p, both, shards=4) as q:
            addresses = sorted(both.nthreads())
            q.shards._owners = [addresses[k] for k in layout]
            q.shards._closed = set(range(4))
            q.shards._settle()
            found.append(nt.Solver(q, **HOW).solve())
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].W, other.W)
        assert found[0].certificate == other.certificate


def test_update_and_warm_starts(both):
    p = make()
    with sharded(p, both) as q:
        there, here = nt.Solver(q, **HOW), nt.Solver(p, **HOW)
        same(here.solve(), there.solve())
        same(here.update(epsilon=0.1).solve(), there.update(epsilon=0.1).solve())
        with pytest.raises(TypeError, match="cannot change X, dtype of a problem on workers"):
            there.update(X=p.X, dtype=np.float32)
    known = nt.Solver(p, **HOW).solve()
    with sharded(p, both) as q:
        same(nt.Solver(p, **HOW).start(known).solve(), nt.Solver(q, **HOW).start(known).solve())


def test_files_masks_and_another_penalty(both, tmp_path):
    p = make()
    for name, a in (("X", p.X), ("Y", p.Y)):
        np.save(tmp_path / f"{name}.npy", a.T)
    X, Y = (nt.Chunked(tmp_path / f"{name}.npy", "rows") for name in "XY")
    rows = p.replace(penalty="rows")
    with sharded(rows, both, X=X, Y=Y, omega=p.mask) as q:
        assert fingerprint(q) == fingerprint(rows)
        same(nt.Solver(rows, **HOW).solve(), nt.Solver(q, **HOW).solve())


def test_in_one_call_and_with_threads(client, tmp_path):
    p = make()
    options = {"neuronwise": True, **HOW}
    here = nt.solve(p.X, p.Y, 0.05, **options)
    same(here, nt.distributed.solve(p.X, p.Y, 0.05, client=client, **options))
    same(here, nt.distributed.solve(p.X, p.Y, 0.05, client="threads", shards=3, **options))


def test_what_is_refused(both, tmp_path):
    p = make()
    X = p.X.copy()
    X[3, 650] = np.nan
    Z = nt.Convolution(np.ones((2, 3, 5, 5)), nt.Geometry((3, 3)))
    for given, error, words in (
        ({"X": X}, ValueError, "X contains NaN.*of the samples from 466"),
        ({"Y": p.Y[:, :-1]}, ValueError, "one column per sample"),
        ({"X": Z}, TypeError, "Convolution is not cut"),
        ({"shards": 0}, ValueError, "shards must be"),
        ({"memory": 1e6}, MemoryError, "memory is too little"),
    ):
        with pytest.raises(error, match=words), sharded(p, both, **given) as q:
            nt.Solver(q, **HOW).solve()
    with pytest.raises(ValueError, match="must be 'threads', 'processes'"), connect("nonsense"):
        pass
    with pytest.raises(TypeError, match="unknown|unexpected"):
        nt.distributed.solve(p.X, p.Y, 0.1, client=both, nonsense=1)


# faults


class Killer:
    """A callback that kills the workers of some shards at some iterations."""

    def __init__(self, q: ShardedProblem, client: Any, when: dict[int, list[int]]):
        self.q, self.client, self.when = q, client, dict(when)

    def __call__(self, row: dict) -> None:
        for k in self.when.pop(row["iteration"], []):
            kill(self.client, self.q.shards._owners[k])


@pytest.fixture(scope="module")
def undisturbed():
    return nt.Solver(make(), **LONG).solve()


def test_a_killed_worker_is_replaced_and_nothing_changes(both, undisturbed):
    with sharded(make(), both) as q:
        quiet = nt.Solver(q, **LONG).solve()
        solver = nt.Solver(q, **LONG, callback=Killer(q, both, {20: [0]}))
        found = solver.solve()
        assert q.shards.recovered
    np.testing.assert_array_equal(found.W, quiet.W)
    assert found.certificate == quiet.certificate and found.iterations == quiet.iterations
    same(undisturbed, found)


def test_killed_again_and_read_from_a_checkpoint(both, undisturbed, tmp_path, monkeypatch):
    def often(self, state, iterations, samples):
        if iterations % 10 == 5:
            self.write(state, samples, iterations)

    monkeypatch.setattr(checkpoint.Keeper, "keep", often)
    seen = []
    original = shards_module.Shards._opened

    def watched(self, k):
        seen.append((self._columns_number, len(self._kept)))
        return original(self, k)

    monkeypatch.setattr(shards_module.Shards, "_opened", watched)
    with sharded(make(), both) as q:
        how = {**LONG, "checkpoint": tmp_path / "run", "callback": Killer(q, both, {20: [2], 40: [0]})}
        found = nt.Solver(q, **how).solve()
        assert q.shards.recovered >= 2
    # the state was the checkpoint's, and only what came after it was done again
    assert any(number > 40 and kept < 30 for number, kept in seen)
    same(undisturbed, found)
    assert not (tmp_path / "run").exists()


def test_too_much_to_keep_is_said_and_a_loss_then_ends_the_solve(both, monkeypatch, caplog):
    monkeypatch.setattr(shards_module, "KEPT", 1000)
    with sharded(make(), both) as q:
        with pytest.raises(RuntimeError, match="set checkpoint to a folder"):
            nt.Solver(q, **LONG, callback=Killer(q, both, {20: [0]})).solve()
    assert "set checkpoint, or a loss ends the solve" in caplog.text


def test_samples_that_change_are_found(both, tmp_path):
    p = make()
    np.save(tmp_path / "X.npy", p.X)
    np.save(tmp_path / "Y.npy", p.Y)
    X, Y = (nt.Chunked(tmp_path / f"{name}.npy") for name in "XY")
    with sharded(p, both, X=X, Y=Y) as q:

        def callback(row):
            if row["iteration"] == 20:
                np.save(tmp_path / "other.npy", p.Y * 1.001)
                os.replace(tmp_path / "other.npy", tmp_path / "Y.npy")
                kill(both, q.shards._owners[1])

        with pytest.raises(RuntimeError, match="have changed since the solve began"):
            nt.Solver(q, **LONG, callback=callback).solve()


def test_all_workers_and_the_scheduler_lost_then_resumed_on_one_machine(tmp_path, undisturbed, monkeypatch):
    """A cluster that dies leaves a checkpoint, from which another one, or none, goes on."""
    monkeypatch.setattr(shards_module, "REPLACED", 1.0)
    monkeypatch.setattr(shards_module, "NONE_LEFT", 1.0)
    monkeypatch.setattr(cluster_module, "ANSWER", 15.0)

    def often(self, state, iterations, samples):
        if iterations % 10 == 5:
            self.write(state, samples, iterations)

    monkeypatch.setattr(checkpoint.Keeper, "keep", often)
    p, run = make(), tmp_path / "run"
    address = tmp_path / "scheduler"
    log = (tmp_path / "log").open("w")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "from distributed.cli.dask_scheduler import main; main()", "--host", "127.0.0.1",
             "--port", "0", "--no-dashboard", "--scheduler-file", str(address)], stdout=log, stderr=log)
    ]  # fmt: skip
    worker = [sys.executable, "-c", "from distributed.cli.dask_worker import main; main()", "--no-nanny",
              "--no-dashboard", "--nthreads", "1", "--scheduler-file", str(address), "--host", "127.0.0.1"]  # fmt: skip
    try:
        processes += [subprocess.Popen(worker, stdout=log, stderr=log) for _ in range(2)]
        with distributed.Client(scheduler_file=str(address), timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
            with sharded(p, client) as q:

                def callback(row):
                    if row["iteration"] == 20:
                        for process in processes[1:]:
                            process.kill()

                with pytest.raises(RuntimeError, match="no workers are left at tcp://127.0.0.1"):
                    nt.Solver(q, **LONG, checkpoint=run, callback=callback).solve()
            # the same scheduler, with new workers
            processes += [subprocess.Popen(worker, stdout=log, stderr=log) for _ in range(2)]
            client.wait_for_workers(2, timeout=120)
            first: list[int] = []
            with sharded(p, client, shards=2) as q:

                def second(row):
                    first.append(row["iteration"])
                    if row["iteration"] == 40:
                        processes[0].kill()

                with pytest.raises(RuntimeError, match="the scheduler at .* does not answer"):
                    nt.Solver(q, **LONG, checkpoint=run, callback=second).solve()
            assert first[0] == 20
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
    rows: list[int] = []
    found = nt.Solver(p, **LONG, checkpoint=run, callback=lambda row: rows.append(row["iteration"])).solve()
    assert rows[0] == 40
    same(undisturbed, found, 1e-7)
    assert not run.exists()


def test_a_client_that_has_given_up_is_a_lost_connection():
    """Between a scheduler's death and its discovery, calls find the client's pool of connections closed."""
    import asyncio

    from nettrim.distributed import site as site_module

    def connect_to(address):
        raise RuntimeError("ConnectionPool is closed")

    found = asyncio.run(site_module.ask(connect_to, "tcp://127.0.0.1:1", "key", "answer"))
    assert found == site_module.Gone("tcp://127.0.0.1:1")


def test_imports_are_light():
    program = """
import sys, nettrim
assert "distributed" not in sys.modules and "dask" not in sys.modules
import nettrim.distributed
assert "distributed" not in sys.modules
sys.modules["distributed"] = None
try:
    nettrim.distributed.solve(None, None, 0.1)
except ImportError as error:
    assert "extra dask" in str(error)
else:
    raise SystemExit("no ImportError")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path("/"))


# layers and blocks of neurons


def network() -> tuple[list[nt.Layer], np.ndarray]:
    from helpers import plain_network

    return plain_network((12, 16, 8, 4), mixed=True)


def assert_same_network(a: nt.PrunedNetwork, b: nt.PrunedNetwork) -> None:
    for first, second, one, other in zip(a.layers, b.layers, a.reports, b.reports, strict=True):
        np.testing.assert_allclose(first.weight, second.weight, rtol=1e-5, atol=1e-6)
        assert (one.name, one.status, one.kept) == (other.name, other.status, other.kept)
        assert one.error == pytest.approx(other.error, rel=1e-4) and one.bound == pytest.approx(other.bound, rel=1e-4)


def test_layers_over_a_cluster_are_those_of_one_machine(both):
    layers, inputs = network()
    here = nt.prune(layers, inputs, {"fc1": 0.2, "*": 0.1}, n_threads=1)
    reports, names = [], set()

    def callback(row):
        names.add(row["name"])

    there = nt.prune(layers, inputs, {"fc1": 0.2, "*": 0.1}, client=both, progress=reports.append, callback=callback)
    assert_same_network(here, there)
    assert [r.name for r in reports] == ["fc0", "fc1", "fc2"]
    assert names <= {f"nettrim-layer-fc{k}" for k in range(3)}
    with pytest.raises(ValueError, match="a layer of the cascade waits"):
        nt.prune(layers, inputs, 0.1, "cascade", client=both)


def test_a_layer_whose_worker_is_killed_is_sent_again(both, caplog):
    """The worker that has it, whichever that is, while it is at work."""
    layers, inputs = network()
    here = nt.prune(layers, inputs, 0.05, method="admm", polish=False, n_threads=1, gap_tol=1e-5)
    killed: list[str] = []

    def callback(row):
        if not killed:
            killed.append(row["name"])
            os.kill(row["pid"], signal.SIGKILL)

    there = nt.prune(layers, inputs, 0.05, method="admm", polish=False, gap_tol=1e-5, client=both, callback=callback)
    assert killed and "was lost with its worker, and is sent again" in caplog.text
    assert_same_network(here, there)


def test_stopping_all_layers(both):
    layers, inputs = network()
    with pytest.raises(KeyboardInterrupt):
        nt.prune(layers, inputs, 0.05, method="admm", gap_tol=1e-9, client=both, callback=lambda row: True)
    # the workers are there for others
    assert both.submit(sum, [1, 2], pure=False).result(timeout=120) == 3


@pytest.mark.parametrize("kind", ["relu", "linear", "bounds", "bias free"])
def test_blocks_of_neurons(both, kind):
    p = make(kind)
    options: dict = {"omega": "linear" if p.linear else "active", "V": p.V if p.V.size > 1 else 0.0, "C": p.C}
    here = nt.solve(p.X, p.Y, 0.05, neuronwise=True, gap_tol=1e-7, feas_tol=1e-7, **options)
    there = nt.distributed.solve_neurons(p.X, p.Y, 0.05, client=both, blocks=3, gap_tol=1e-7, feas_tol=1e-7, **options)
    assert there.status == nt.Status.SOLVED and there.certificate.holds(1e-6, 1e-6)
    assert there.certificate.objective == pytest.approx(here.certificate.objective, rel=1e-5)
    with pytest.raises(ValueError, match="may couple the neurons"):
        nt.distributed.solve_neurons(p.X, p.Y, 0.05, client=both, penalty="rows")
    with pytest.raises(ValueError, match="a common ball couples the neurons"):
        nt.distributed.solve_neurons(p.X, p.Y, 0.05, client=both, neuronwise=False)


def arrays_in(value: Any) -> int:
    """Bytes of the arrays in a message."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Call):
        return arrays_in(value.arguments)
    if isinstance(value, Total):
        return arrays_in(value.sums) + arrays_in(value.peaks)
    return sum(map(arrays_in, value)) if isinstance(value, (tuple, list)) else 0


@pytest.mark.parametrize("workers", [1, 3])
def test_an_iteration_sends_what_the_model_says(workers, monkeypatch):
    from nettrim.distributed import site as site_module
    from nettrim.distributed.cost import Cost

    sent: list[int] = []
    original = site_module.ask

    async def counted(connect_to, address, key, method, *arguments):
        found = await original(connect_to, address, key, method, *arguments)
        sent.append(arrays_in(arguments) + arrays_in(found))
        return found

    monkeypatch.setattr(site_module, "ask", counted)
    monkeypatch.setattr(shards_module, "ask", counted)
    p = make(dtype=np.float32)
    with connect("threads", workers) as there, sharded(p, there, shards=workers) as q:
        loop = nt.Solver(q)._loop()
        state, marks = loop.start(), []

        def tick() -> str | None:
            marks.append(len(sent))
            return "limit" if len(marks) == 4 else None

        quiet = nt.Settings(check_every=10**9, max_iterations=10**9, adapt=False)
        loop.run(state, quiet, lambda check: True, tick, lambda check: None)
    cost = Cost(N, M, P, workers)
    iteration = sent[marks[1] : marks[2]]
    assert len(iteration) == 2 * workers and sum(iteration) == cost.sent
    assert cost.depth == {1: 1, 3: 3}[workers]
    assert cost.seconds(1e9, 0.0, 1e9) < cost.seconds(1e9, 1e-3, 1e9) < cost.seconds(5e8, 1e-3, 5e8)

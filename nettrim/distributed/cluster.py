"""The cluster: its client, its workers, and what is said when they are gone."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from nettrim.extras import install

__all__ = ["address_of", "alive", "connect", "imported", "lost_scheduler", "workers"]

#: seconds for the scheduler to answer
ANSWER = 30.0

log = logging.getLogger("nettrim")


def imported() -> Any:
    """The package `distributed`.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError(f"nettrim.distributed needs Dask: {install('dask')}") from error
    return distributed


@contextmanager
def connect(where: Any, workers: int | None = None) -> Iterator[Any]:
    """A client of a cluster, which is closed at the end if it was opened here.

    Parameters
    ----------
    where : str or distributed.Client
        ``"processes"`` or ``"threads"`` for workers on this machine, one a core, that are gone afterwards; the address
        of a scheduler, such as ``"tcp://10.0.0.1:8786"``, or the file that it wrote with ``--scheduler-file``; or a
        client, for instance of a `dask_cuda.LocalCUDACluster`.
    workers : int, optional
        Of those on this machine; default the number of cores.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ImportError
        Dask is not installed.
    ValueError
        `where` is none of these, or nobody answers there.
    """
    distributed = imported()
    if isinstance(where, distributed.Client):
        yield where
        return
    if where in ("processes", "threads"):
        count = workers or os.cpu_count() or 1
        kind: dict[str, Any] = {"n_workers": count, "threads_per_worker": 1, "processes": where == "processes"}
        if where == "processes":
            # this machine only: whoever else reached the scheduler could run code
            kind["host"] = "127.0.0.1"
        with (
            # what goes wrong in a task is raised here; what is said beside that, after Ctrl-C say, is of no use
            distributed.LocalCluster(**kind, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL) as cluster,
            distributed.Client(cluster) as client,
        ):
            if where == "processes":
                client.register_worker_callbacks(_ignore_interrupts)
            log.info("dashboard at %s", client.dashboard_link)
            yield client
        return
    if not isinstance(where, str):
        raise ValueError(
            f"the cluster must be 'threads', 'processes', an address or a distributed.Client; got {where!r}"
        )
    scheduler: dict[str, Any] = {"scheduler_file": where} if os.path.isfile(where) else {"address": where}
    if "address" in scheduler and "://" not in where and ":" not in where:
        raise ValueError(
            f"the cluster must be 'threads', 'processes', or an address such as tcp://10.0.0.1:8786; got {where!r}"
        )
    try:
        client = distributed.Client(**scheduler, timeout=ANSWER)
    except (OSError, ValueError) as error:
        raise ValueError(f"no scheduler answers at {where}: {error}") from error
    with client:
        yield client


def _ignore_interrupts() -> None:
    """Ctrl-C goes to every process of a terminal; what becomes of the workers is decided by the one that has them."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def alive(client: Any) -> dict[str, int]:
    """Addresses of the workers, with their numbers of threads.

    Raises
    ------
    RuntimeError
        The scheduler is gone.
    """
    try:
        return dict(client.sync(client.scheduler.ncores, callback_timeout=ANSWER))
    except (OSError, RuntimeError, AttributeError) as error:
        # a client that has given up has no scheduler any more
        raise lost_scheduler(client) from error


def workers(
    client: Any, wanted: int = 1, patience: float = 0.0, last: float = ANSWER, without: Collection[str] = ()
) -> list[str]:
    """Addresses of the workers, in an order that does not change.

    Parameters
    ----------
    client : distributed.Client
    wanted : int
        Workers to wait for.
    patience, last : float
        Seconds to wait for so many, and for a first one.
    without : collection of str
        Addresses that do not count.

    Raises
    ------
    RuntimeError
        There is none, or the scheduler is gone.
    """
    distributed = imported()
    for count, seconds in ((wanted, patience), (1, last)):
        there = [address for address in alive(client) if address not in without]
        if len(there) >= count:
            break
        try:
            client.wait_for_workers(count, timeout=max(seconds, 0.1))
        except (distributed.TimeoutError, OSError):
            continue
    there = sorted(address for address in alive(client) if address not in without)
    if not there:
        raise RuntimeError(
            f"no workers are left at {client.scheduler.address}: a solve with a checkpoint goes on from there, and "
            "finished layers are kept in the folder of the run"
        )
    return there


def lost_scheduler(client: Any) -> RuntimeError:
    """What is said when it does not answer."""
    return RuntimeError(
        f"the scheduler at {getattr(client.scheduler, 'address', 'its address')} does not answer any more: a solve "
        "with a checkpoint goes on from there, and finished layers are kept in the folder of the run"
    )


class _Proxy:
    """A worker's functions, by way of the scheduler."""

    def __init__(self, scheduler: Any, address: str):
        self._scheduler, self._address = scheduler, address

    def __getattr__(self, name: str) -> Any:
        async def function(**message: Any) -> Any:
            return await self._scheduler.proxy(worker=self._address, msg={"op": name, **message})

        return function


def address_of(client: Any, address: str) -> Any:
    """A worker's functions: asked for directly, unless the client was told that it cannot reach workers."""
    return _Proxy(client.scheduler, address) if client.direct_to_workers is False else client.rpc(address)

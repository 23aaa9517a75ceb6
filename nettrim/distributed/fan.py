"""Tasks that do not wait for each other, on the workers of a cluster: layers, and blocks of neurons.

No more are under way than there are workers, and one to spare, so that neither this process nor the scheduler holds the
data of all of them. What a worker loses is sent again. Checks of a solve come back as events; a wish to stop goes out
as another.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from nettrim.distributed.cluster import alive, imported, workers
from nettrim.threads import limit

__all__ = ["Job", "fan_out"]

#: times that a job is sent before it is given up
ATTEMPTS = 4
#: seconds between two looks at whether there are still workers
WATCH = 1.0

log = logging.getLogger("nettrim")


@dataclass(frozen=True)
class Job:
    """A function to be called on a worker, with keywords ``n_threads`` and ``callback`` besides its own.

    Parameters
    ----------
    name : str
        For the dashboard.
    index : int
        Which of the results it is.
    function : callable
        Of a module, so that the worker finds it.
    arguments : tuple
    options : dict
    """

    name: str
    index: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class _Follow:
    """The solver's callback on a worker: it tells the client, and stops when the client wants that."""

    def __init__(self, topic: str, name: str):
        self.topic, self.name = topic, name

    def __call__(self, row: dict[str, Any]) -> bool:
        from distributed import Event, get_worker

        get_worker().log_event(self.topic, {"name": self.name, "pid": os.getpid(), **row})
        return Event(self.topic).is_set()


def _run(job: Job, topic: str, n_threads: int | None) -> Any:
    """A job, on a worker."""
    from distributed import get_worker

    threads = n_threads or max(1, get_worker().state.nthreads)
    # tasks beside each other in one process share its BLAS: one thread each
    threads = threads if n_threads or get_worker().state.nthreads == 1 else 1
    options = {**job.options, "n_threads": threads, "callback": _Follow(topic, job.name)}
    try:
        return job.function(*job.arguments, **options)
    except KeyboardInterrupt:
        # it was told to stop, and must not take the worker with it; nobody waits for the result
        return None


def fan_out(
    client: Any,
    jobs: Iterable[Job],
    callback: Callable[[dict[str, Any]], Any] | None = None,
    n_threads: int | None = None,
) -> Iterator[tuple[Job, Any]]:
    """Each job with its result, as they come.

    A job is taken from `jobs` when a worker has room for it.

    Parameters
    ----------
    client : distributed.Client
    jobs : iterable of Job
    callback : callable, optional
        Told of every check of a solver, with the job's ``name`` and the worker's ``pid``; a true result stops all.
    n_threads : int, optional
        Of a job; default one, where tasks run beside each other on a worker.

    Raises
    ------
    KeyboardInterrupt
        The callback, or the user, wanted to stop; what is under way is told to.
    RuntimeError
        No workers are left, or the scheduler is gone.
    """
    distributed = imported()
    topic = f"nettrim-{uuid4().hex}"
    stop = distributed.Event(topic, client=client)
    stopped: list[bool] = []

    def told(event: tuple[Any, dict[str, Any]]) -> None:
        row = dict(event[1])
        if callback is not None and callback(row) and not stopped:
            stopped.append(True)

    client.subscribe_topic(topic, told)
    waiting, left = iter(jobs), True
    running: dict[Any, tuple[Job, int]] = {}
    again: list[tuple[Job, int]] = []
    try:
        # this process may be the workers' too
        with limit(1) if _here(client) else contextlib.nullcontext():
            while running or left or again:
                # waits for a first one, or says that there is none
                workers(client)
                room = sum(alive(client).values()) + 1
                while len(running) < room and (again or left):
                    job, attempt = again.pop() if again else (next(waiting, None), 1)
                    if job is None:
                        left = False
                        break
                    running[_submit(client, job, topic, n_threads)] = job, attempt
                if not running:
                    continue
                done = _next(client, list(running), stopped)
                if stopped:
                    raise KeyboardInterrupt("the callback wanted to stop")
                for future in done:
                    job, attempt = running.pop(future)
                    result, lost = _result(client, future)
                    future.release()
                    if not lost:
                        yield job, result
                    elif attempt >= ATTEMPTS:
                        raise RuntimeError(f"{job.name} was lost with its worker {attempt} times: it is given up")
                    else:
                        log.warning("%s was lost with its worker, and is sent again", job.name)
                        again.append((job, attempt + 1))
    except OSError:
        # that the scheduler is gone is said in other words; what a job or a file raises, as it is
        alive(client)
        raise
    finally:
        # the scheduler may be gone
        with contextlib.suppress(OSError, RuntimeError, AttributeError):
            if running:
                stop.set()
                client.cancel(list(running), force=True)
            client.unsubscribe_topic(topic)


def _here(client: Any) -> bool:
    """Whether workers are threads of this process."""
    return str(getattr(client.scheduler, "address", "")).startswith("inproc")


def _submit(client: Any, job: Job, topic: str, n_threads: int | None) -> Any:
    # the data go to one worker as they are, beside the graph of tasks
    (data,) = client.scatter([job], hash=False, direct=client.direct_to_workers)
    key = f"{job.name}-{uuid4().hex}"
    return client.submit(_run, data, topic, n_threads, key=key, pure=False, retries=0)


def _next(client: Any, futures: list[Any], stopped: list[bool]) -> list[Any]:
    """Those that are done, once one is, or all is to stop.

    Raises
    ------
    RuntimeError
        There are no workers.
    """
    distributed = imported()
    while True:
        done = [future for future in futures if future.done()]
        if done or stopped:
            return done
        try:
            distributed.wait(futures, timeout=WATCH, return_when="FIRST_COMPLETED")
        except (distributed.TimeoutError, distributed.CancelledError):
            workers(client)


def _result(client: Any, future: Any) -> tuple[Any, bool]:
    """The result, and whether it was lost with a worker instead."""
    distributed = imported()
    try:
        return future.result(), False
    except (distributed.CancelledError, distributed.KilledWorker):
        workers(client)
        return None, True

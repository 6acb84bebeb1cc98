"""Work shared out over the processes of a Ray cluster; nothing here knows what it is about.

Ray moves items and results between our own processes by pickle. That is no way in for strangers: what came from a file,
a corpus or a checkpoint travels as text, numbers and tensors, and no file is unpickled anywhere.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from .attempts import in_one_line, tried_again

STARTS = 3
"""Workers in a row that may fail to start before no more are started."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Outcome:
    """What became of an item: its result, or after the last attempt the error in one line."""

    index: int
    """Place of the item among all of its run."""
    item: Any
    result: Any = None
    error: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Job:
    """What an actor is busy with: an item and how often it was begun, or nothing that anybody waits for."""

    actor: Any
    index: int | None = None
    item: Any = None
    function: Callable[[Any, Any], Any] | None = None
    attempt: int = 0


class Worker:
    """A process of the cluster, on one core and one thread, with a state of its own that lasts over all its items."""

    def __init__(self, make: Callable[[], Any]):
        torch.set_num_threads(1)
        self.state = make()

    def ready(self) -> None:
        """Returns when the worker can take items."""

    def run(self, function: Callable[[Any, Any], Any], item: Any) -> Any:
        return function(self.state, item)


class Pool:
    """Workers on a Ray cluster, one per GPU if it has any, else one per core (see `workers`)."""

    def __init__(self, make: Callable[[], Any], n_workers: int | None = None):
        self.ray = imported()
        resources = self.ray.cluster_resources()
        n_gpus, n_cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self.size = min(n_workers or n_gpus or n_cores, n_gpus or n_cores)
        if not self.size:
            raise ValueError("the Ray cluster has neither cores nor GPUs to give; add a node with `ray start`")
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
        remote = self.ray.remote(Worker).options(num_cpus=1, num_gpus=int(n_gpus > 0), runtime_env=environment)
        self.new_actor = lambda: remote.remote(make)
        self.idle: list[Any] = []
        self.busy: dict[Any, Job] = {}
        self.failed_starts = 0
        for _ in range(self.size):
            self.start()

    def start(self) -> None:
        actor = self.new_actor()
        self.busy[actor.ready.remote()] = Job(actor)

    def run(self, function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        """`function(state, item)` for every item in some worker; yields what became of each as soon as it is known.

        Items are drawn as workers become free. One that raises, or whose worker dies, may be tried again, before others
        are begun (see `tried_again`).

        Raises:
            ChildProcessError: no worker can be started.
        """
        new = (Job(None, i, item, function, 1) for i, item in enumerate(items))
        again: deque[Job] = deque()
        try:
            self.hand_out(again, new)
            while again or any(job.attempt for job in self.busy.values()) or not self.idle:
                [done], _ = self.ray.wait(list(self.busy), num_returns=1)
                job = self.busy.pop(done)
                outcome, error = self.finish(done, job)
                retry = error is not None and tried_again(error, job.attempt)
                if job.attempt and retry:
                    again.append(replace(job, attempt=job.attempt + 1))
                # Before the outcome is yielded, so that no worker waits for what is done with it.
                self.hand_out(again, new)
                if job.attempt and not retry:
                    yield outcome
        finally:
            self.busy = {ref: Job(job.actor) for ref, job in self.busy.items()}

    def hand_out(self, again: deque[Job], new: Iterator[Job]) -> None:
        """Keep every worker busy as long as there are items."""
        while self.idle and (job := again.popleft() if again else next(new, None)):
            actor = self.idle.pop()
            self.busy[actor.run.remote(job.function, job.item)] = replace(job, actor=actor)

    def finish(self, done: Any, job: Job) -> tuple[Outcome, Exception | None]:
        """What came out, and the error if one did; the worker is idle again, or replaced if it died."""
        outcome, failure = Outcome(job.index or 0, job.item), None
        try:
            outcome = replace(outcome, result=self.ray.get(done))
        except self.ray.exceptions.RayTaskError as error:
            failure = error.cause
            outcome = replace(outcome, error=in_one_line(failure), trace=plain(error))
        except self.ray.exceptions.RayError as error:
            self.replace_dead(job, error)
            said = f"its worker died: {plain(error).splitlines()[0]}"
            return replace(outcome, error=said, trace=plain(error)), error
        self.idle.append(job.actor)
        return outcome, failure

    def replace_dead(self, job: Job, error: Exception) -> None:
        """Another worker for one that died, but not for ever where they die as they start."""
        self.failed_starts = 0 if job.attempt else self.failed_starts + 1
        if self.failed_starts < STARTS:
            self.start()
        elif not self.busy and not self.idle:
            raise ChildProcessError(
                f"no worker can be started on the Ray cluster: {plain(error).splitlines()[-1]}"
            ) from error

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for actor in [*self.idle, *(job.actor for job in self.busy.values())]:
            self.ray.kill(actor)


def plain(error: Exception) -> str:
    """The message without colours."""
    return _COLOUR.sub("", str(error)).strip() or type(error).__name__


@contextmanager
def workers(address: str, make: Callable[[], Callable[[Any], Any]], *, n_workers: int | None = None) -> Iterator[Pool]:
    """A pool of workers on a Ray cluster; on leaving they end, and with them a cluster that was started for them.

    Args:
        address: "local" starts a cluster on this machine, "auto" finds the one that runs on it, anything else is the
            address of one, such as "ray://head:10001". In a process that has called `ray.init`, that cluster is used.
        make: called once in every worker; returns its state.
        n_workers: at most so many.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """
    ray = imported()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        pool = Pool(make, n_workers)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": _n_cores(), "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or use 'local'"
        ) from error


def _n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def imported() -> Any:
    """The package ray, which is optional."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("Ray is not installed; `pip install 'mi_multilingual[cluster]'`") from error
    return ray

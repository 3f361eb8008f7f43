"""How long it took, from Prefect's times of each run's states."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.queueing.queue import Values, first, moment


@dataclass(frozen=True)
class QueueFigures:
    """Of a whole queue (seconds, medians where not said otherwise).

    Attributes:
        runs, workers: how many.
        seconds: from the first run's place in the queue to the last one's end.
        waited: from the queue to a worker's taking. waited_longest: the longest.
        started: from there to the flow's first line: Prefect's process, its imports.
        ran: from there to the end. ran_unchanged, ran_changed: of runs without and with work.
        alone: `prefloop run` without work by itself in the same workspace, nothing beside it.
        cpu: processor time of workers and runs, a run. alone_cpu: of that run by itself.
        server_mib: the most memory that Prefect's server held.
        server_cpu: processor time of servers and their databases, a run; 0 where unknown.
    """

    runs: int
    workers: int
    seconds: float
    waited: float
    waited_longest: float
    started: float
    ran: float
    ran_unchanged: float
    ran_changed: float
    alone: float
    cpu: float
    alone_cpu: float
    server_mib: float

    @property
    def a_minute(self) -> float:
        """Runs that ended a minute."""
        return 60 * self.runs / self.seconds

    @property
    def added_cpu(self) -> float:
        """Processor time that deployment, worker and flow add to a run without work and the changed ones'
        share."""
        return self.cpu - self.alone_cpu


def figures(
    runs: Sequence[Values], workers: int, *, alone: tuple[float, float], cpu: float, server_mib: float
) -> QueueFigures:
    """Figures of runs that all ended well.

    Args:
        runs: flow runs with their `states`.
        alone: wall and processor time of `prefloop run` without work by itself.
        cpu: processor time of all workers and what they started (seconds).
    """
    queued, taken, begun, ended = (
        [moment(state) for run in runs if (state := first(run, kind))]
        for kind in ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED")
    )
    unchanged = [run["state"]["name"] == "Skipped" for run in runs]
    ran = [end - begin for begin, end in zip(begun, ended, strict=True)]
    return QueueFigures(
        runs=len(runs),
        workers=workers,
        seconds=max(ended) - min(queued),
        waited=statistics.median(take - queue for queue, take in zip(queued, taken, strict=True)),
        waited_longest=max(take - queue for queue, take in zip(queued, taken, strict=True)),
        started=statistics.median(begin - take for take, begin in zip(taken, begun, strict=True)),
        ran=statistics.median(ran),
        ran_unchanged=_median([took for took, same in zip(ran, unchanged, strict=True) if same]),
        ran_changed=_median([took for took, same in zip(ran, unchanged, strict=True) if not same]),
        alone=alone[0],
        cpu=cpu / len(runs),
        alone_cpu=alone[1],
        server_mib=server_mib,
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")

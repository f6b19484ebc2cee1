"""Many pilots at once on one broker: starts them, adds up what they cost, ends them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pilots
import procfs
from pilots import Pilot, Runtime
from queues import Queues
from setting import OURS, Late, Setting

# As a pool does: not all in the same moment.
_STARTS_A_SECOND = 40
_STOPS_WITHIN_SECS = 60


@dataclass(frozen=True)
class Cost:
    """Of all pilots together, guardians included, up to now."""

    cpu: float
    share: int


@dataclass(frozen=True)
class Fleet:
    """All that were started."""

    members: list[Pilot]

    def alive(self) -> list[Pilot]:
        """Those that still run."""
        return [pilot for pilot in self.members if pilot.process.poll() is None]

    def cost(self) -> Cost:
        """Adds up."""
        cpu, share = 0.0, 0
        for pilot in self.alive():
            for pid in pilot.processes():
                cpu += procfs.cpu_seconds(pid)
                share += procfs.memory(pid)[1]
        return Cost(cpu, share)

    def cpu_seconds(self) -> float:
        """Of the pilots alone: quicker."""
        return sum(procfs.cpu_seconds(pilot.pid) for pilot in self.alive())

    def last_words(self) -> str:
        """Of the first that ended."""
        ended = [pilot for pilot in self.members if pilot.process.poll() is not None]
        return ended[0].last_words() if ended else ""


@contextmanager
def sailing(setting: Setting, queues: list[Queues], count: int, task: str) -> Iterator[Fleet]:
    """Starts pilots, the i-th on the i-th pair of queues or all on the one there is. `{}` in `task` is its number."""
    fleet = Fleet([])
    try:
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / _STARTS_A_SECOND - time.monotonic()))
            own = queues[number] if len(queues) > 1 else queues[0]
            pilot = pilots.start(
                setting, OURS, own, Runtime.STAND_IN, TASK_ARGS=task.replace("{}", str(number)), PREFLIGHT=False
            )
            fleet.members.append(pilot)
        yield fleet
    finally:
        _end(fleet)


def _end(fleet: Fleet) -> None:
    for patience, number in ((_STOPS_WITHIN_SECS, signal.SIGTERM), (10, signal.SIGTERM), (10, signal.SIGKILL)):
        for pilot in fleet.alive():
            pilot.process.send_signal(number)
        end = time.monotonic() + patience
        for pilot in fleet.alive():
            try:
                pilot.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
    if fleet.alive():
        raise Late(f"{len(fleet.alive())} pilots do not end")

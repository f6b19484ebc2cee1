"""(c) An idle pilot: what it costs a machine to have one that waits."""

from __future__ import annotations

import time

import pilots
import procfs
from figures import Goal, Section
from queues import Collector, encode, fresh
from setting import BUILDS, Late, Setting

_ROUNDS_MOST = 2
# After a minute without events the pilot lets its containers go.
_SETTLE_SECS = 65


def measure(setting: Setting) -> Section:
    """Every pilot in turn."""
    seconds = setting.sized(20, 10)
    section = Section(
        "c",
        "Idle",
        f"A pilot with both connections that did one event {_SETTLE_SECS} s ago, over {seconds} s. Share of memory "
        "(Pss): resident pages, each divided by the number of processes that have it. All with the guardian, which "
        "the Python pilot does not have. Wake-ups: context switches of all threads.",
    )
    for _ in range(min(setting.rounds, _ROUNDS_MOST)):
        for column in setting.pilots:
            try:
                _pilot(setting, section, column, seconds)
            except Late as late:
                section.row("memory, share", "MiB").reasons[column] = str(late)
    return section


def _pilot(setting: Setting, section: Section, column: str, seconds: int) -> None:
    with fresh("idle") as queues, Collector(queues.outgoing) as results:
        with pilots.running(setting, column, queues) as pilot:
            queues.publish([encode("event")])
            results.wait_for(1, 30, pilot.check)
            time.sleep(_SETTLE_SECS)
            processes = pilot.processes()
            switched = [procfs.switches(pid) for pid in processes]
            spent = sum(procfs.cpu_seconds(pid) for pid in processes)
            time.sleep(seconds)
            spent = sum(procfs.cpu_seconds(pid) for pid in processes) - spent
            wakes = sum(_more(pid, before) for pid, before in zip(processes, switched))
            sizes = [procfs.memory(pid) for pid in processes]

    def add(what: str, unit: str, value: float, goal: Goal | None = None) -> None:
        section.row(what, unit, goal).add(column, value)

    add("memory, share", "MiB", sum(share for _, share in sizes) / procfs.MIB, Goal(6.5))
    add("memory, resident", "MiB", sum(size for size, _ in sizes) / procfs.MIB)
    if column in BUILDS:
        add("guardian's share of that", "MiB", sum(share for _, share in sizes[1:]) / procfs.MIB)
    add("wake-ups a second", "1/s", wakes / seconds, Goal(1))
    add("CPU time a minute", "ms", spent / seconds * 60 * 1000)


def _more(pid: int, before: dict[int, int]) -> int:
    return sum(count - before.get(thread, 0) for thread, count in procfs.switches(pid).items())

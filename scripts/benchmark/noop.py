"""(a) Events that do nothing: what a pilot adds to its containers, in time and in CPU time of its own."""

from __future__ import annotations

from dataclasses import dataclass

import bare
import pilots
import procfs
from figures import Goal, Row, Section
from queues import Collector, encode, fresh
from setting import BARE, BUILDS, Late, Setting

_TIME_GOALS = {1: 1.05, 2: 1.05, 4: 1.10, 8: 1.10}
_CPU_GOAL_MS = 3.0
# The speed of a core that others share changes by a third within seconds: many short turns, so that every
# column gets its part of either.
_TURNS = 4
_SLOWEST_EVENT_SECS = 5.0


@dataclass
class _Rows:
    time: Row
    cpu: Row
    guardian: Row


def measure(setting: Setting) -> Section:
    """Every concurrency, in it every column in turn."""
    section = Section(
        "a",
        "Events that do nothing",
        "All events are in the queue, then the pilot is started; a task copies its infile of a few bytes. Time an "
        "event: between the arrival of results, over the part in which every slot is busy (the first and the last "
        "results, as many as slots, are left out), divided by their number. Own CPU: of the pilot's process "
        "alone over the same part, containers not counted. Prefetch is twice the concurrency, as for any tasks as "
        f"short as these. {_TURNS} turns a round; who comes first in one comes last in the next.",
    )
    columns = [BARE, *setting.pilots]
    for slots, factor in _TIME_GOALS.items():
        for turn in range(setting.rounds * _TURNS):
            rows = _Rows(
                section.row(f"{slots} at once: time an event", "ms", Goal(times=factor)),
                section.row(f"{slots} at once: own CPU an event", "ms", Goal(_CPU_GOAL_MS)),
                section.row(f"{slots} at once: guardian's CPU an event", "ms"),
            )
            count = setting.sized(24 if slots < 4 else 48, 12) + 2 * slots
            first = turn % len(columns)
            for column in columns[first:] + columns[:first]:
                if column == BARE:
                    ended = bare.run_all(bare.prepare(setting, count), slots)
                    rows.time.add(BARE, _each(ended, slots) * 1000)
                    continue
                try:
                    _pilot(setting, column, slots, count, rows)
                except Late as late:
                    rows.time.reasons[column] = str(late)
    return section


def _each(ended: list[float], slots: int) -> float:
    steady = ended[slots - 1 : len(ended) - slots]
    return (steady[-1] - steady[0]) / (len(steady) - 1)


def _pilot(setting: Setting, column: str, slots: int, count: int, rows: _Rows) -> None:
    with fresh("noop") as queues:
        queues.fill([encode(f"event {number}") for number in range(count)])
        # The pilot is looked at when the steady part begins and when it ends, while it works on.
        cpu: list[list[float]] = []
        pilot = None

        def note(number: int, _body: bytes) -> None:
            if number in (slots, count - slots) and pilot:
                cpu.append([procfs.cpu_seconds(pid) for pid in pilot.processes()])

        with Collector(queues.outgoing, note) as results:
            with pilots.running(setting, column, queues, MAX_CONCURRENT_TASKS=slots, PREFETCH=2 * slots) as pilot:
                results.wait_for(count, 20 + count * _SLOWEST_EVENT_SECS / slots, pilot.check)
        rows.time.add(column, _each(results.times, slots) * 1000)
        events = count - 2 * slots
        spent = [(end - begin) / events * 1000 for begin, end in zip(*cpu)]
        rows.cpu.add(column, spent[0])
        if column in BUILDS:
            rows.guardian.add(column, sum(spent[1:]))

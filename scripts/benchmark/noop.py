"""(a) Short tasks: what a pilot adds to its containers, or spares of their start, in time and in CPU time of its
own."""

from __future__ import annotations

from dataclasses import dataclass

import bare
import pilots
import procfs
from figures import Goal, Row, Section
from queues import Collector, encode, fresh
from setting import BARE, BUILDS, Late, Setting

_TIME_GOALS = {1: 0.75, 2: 0.95, 4: 0.95, 8: 0.95}
_CPU_GOAL_MS = 2.0
_TASK_SECS = 0.3
_TASK = f"sh -c 'sleep {_TASK_SECS}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}'"
_BEYOND_GOAL_MS = 20.0
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
        "alone over the same part, containers not counted. Prefetch is 1 with one at once, else twice the concurrency, as "
        f"for any tasks as short as these. Last, one at once, tasks of {_TASK_SECS} s. {_TURNS} turns a round; who comes first in one comes last in the next.",
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
    for turn in range(setting.rounds * _TURNS):
        beyond = section.row(f"a task of {_TASK_SECS} s: what it costs beyond", "ms", Goal(_BEYOND_GOAL_MS))
        first = turn % len(columns)
        for column in columns[first:] + columns[:first]:
            try:
                beyond.add(column, (_each_of(setting, column) - _TASK_SECS) * 1000)
            except Late as late:
                beyond.reasons[column] = str(late)
    return section


def _each_of(setting: Setting, column: str) -> float:
    count = setting.sized(12, 8)
    if column == BARE:
        return _each(bare.run_all(bare.prepare(setting, count, _TASK), 1), 1)
    with fresh("short") as queues:
        queues.fill([encode(f"event {number}") for number in range(count)])
        with Collector(queues.outgoing) as results:
            with pilots.running(setting, column, queues, TASK_ARGS=_TASK) as pilot:
                results.wait_for(count, 20 + count * _SLOWEST_EVENT_SECS, pilot.check)
        return _each(results.times, 1)


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

        prefetch = 1 if slots == 1 else 2 * slots
        with Collector(queues.outgoing, note) as results:
            with pilots.running(setting, column, queues, MAX_CONCURRENT_TASKS=slots, PREFETCH=prefetch) as pilot:
                results.wait_for(count, 20 + count * _SLOWEST_EVENT_SECS / slots, pilot.check)
        rows.time.add(column, _each(results.times, slots) * 1000)
        events = count - 2 * slots
        spent = [(end - begin) / events * 1000 for begin, end in zip(*cpu)]
        rows.cpu.add(column, spent[0])
        if column in BUILDS:
            rows.guardian.add(column, sum(spent[1:]))

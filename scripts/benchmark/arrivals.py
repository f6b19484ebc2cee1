"""(b) Events that arrive one by one while others run: how soon each is taken, how soon its result is out."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean

import bare
import pilots
from figures import Goal, Section
from queues import Collector, decode, encode, fresh
from setting import BARE, Late, Setting

_SLOTS = 4
_EVERY_SECS = 0.3
_LATENCY_GOAL_SECS = 1.03
_TASK = "sh -c 'sleep 1; cp {{INFILE}} {{OUTFILE}}'"


def measure(setting: Setting) -> Section:
    """Every column in turn."""
    count = setting.sized(24, 6)
    section = Section(
        "b",
        "Arrivals",
        f"{count} events of `sleep 1`, one every {_EVERY_SECS} s, {_SLOTS} at once; the pilot is connected and "
        "idle when the first comes. Latency: from publishing an event to the arrival of its result. The bare loop gets "
        "the same arrivals without a broker.",
    )
    for _ in range(setting.rounds):
        _add(section, BARE, _bare(setting, count))
        for column in setting.pilots:
            try:
                _add(section, column, _pilot(setting, column, count))
            except Late as late:
                section.row("makespan", "s").reasons[column] = str(late)
    return section


def _add(section: Section, column: str, lived: list[tuple[float, float]]) -> None:
    latencies = [end - begin for begin, end in lived]
    makespan = max(end for _, end in lived) - lived[0][0]
    section.row("makespan", "s", Goal(times=1.03)).add(column, makespan)
    section.row("mean latency", "s", Goal(_LATENCY_GOAL_SECS)).add(column, mean(latencies))
    section.row("worst latency", "s").add(column, max(latencies))


def _arrive(count: int, arrive: Callable[[int], None]) -> list[float]:
    began = time.monotonic()
    times = []
    for number in range(count):
        time.sleep(max(0.0, began + number * _EVERY_SECS - time.monotonic()))
        times.append(time.monotonic())
        arrive(number)
    return times


def _bare(setting: Setting, count: int) -> list[tuple[float, float]]:
    tasks = bare.prepare(setting, count, _TASK)
    loop = bare.Loop(_SLOTS)
    began = _arrive(count, lambda number: loop.feed(tasks[number]))
    return list(zip(began, loop.finish()))


def _pilot(setting: Setting, column: str, count: int) -> list[tuple[float, float]]:
    with fresh("arrivals") as queues:
        came: list[bytes] = []
        bodies = [encode(f"event {number}") for number in range(count)]
        with (
            Collector(queues.outgoing, lambda _number, body: came.append(body)) as results,
            pilots.running(
                setting, column, queues, TASK_ARGS=_TASK, MAX_CONCURRENT_TASKS=_SLOTS, PREFETCH=_SLOTS
            ) as pilot,
        ):
            queues.await_consumer()
            # The Python pilot's first look at the queue takes a second.
            time.sleep(2)
            began = _arrive(count, lambda number: queues.publish([bodies[number]]))
            results.wait_for(count, 60, pilot.check)
        # Results come in any order; each carries its event's text.
        ends = {decode(body): end for body, end in zip(came, results.times, strict=True)}
        return [(begin, ends[f"event {number}"]) for number, begin in enumerate(began)]

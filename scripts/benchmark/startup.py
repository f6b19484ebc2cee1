"""(d) From the start of a pilot to the first event that it takes, and to the first result."""

from __future__ import annotations

import time

import bare
import pilots
from figures import Goal, Section
from queues import Collector, encode, fresh, wait_until
from setting import BARE, BUILDS, Late, Setting

_TAKEN, _TAKEN_CHECKED, _RESULT = (
    "first event taken, no preflight",
    "first event taken, with preflight",
    "first result",
)


def measure(setting: Setting) -> Section:
    """Every pilot in turn, ours with and without preflight."""
    section = Section(
        "d",
        "Start",
        "One event is in the queue when the pilot is executed. It is taken when its infile is there, and done when its "
        "result arrives. Bare loop: one container, from its start to its end. The Python pilot has no preflight.",
    )
    for _ in range(setting.rounds + 2):
        taken = section.row(_TAKEN, "ms", Goal(30))
        checked = section.row(_TAKEN_CHECKED, "ms", Goal(10, times=1, words="≤ a container start + 10 ms"))
        result = section.row(_RESULT + ", no preflight", "ms")
        result_checked = section.row(
            _RESULT + ", with preflight", "ms", Goal(60, times=1, words="≤ a container start + 60 ms")
        )
        task = bare.prepare(setting, 1)[0]
        began = time.monotonic()
        container = (task.run() - began) * 1000
        checked.add(BARE, container)
        result.add(BARE, container)
        result_checked.add(BARE, container)
        for column in setting.pilots:
            try:
                first, last = _pilot(setting, column, "False")
                taken.add(column, first)
                result.add(column, last)
                if column in BUILDS:
                    first, last = _pilot(setting, column, "True")
                    checked.add(column, first)
                    result_checked.add(column, last)
            except Late as late:
                taken.reasons[column] = str(late)
    return section


def _pilot(setting: Setting, column: str, preflight: str) -> tuple[float, float]:
    with fresh("start") as queues, Collector(queues.outgoing) as results:
        queues.fill([encode("event")])
        with pilots.running(setting, column, queues, PREFLIGHT=preflight) as pilot:
            data = pilot.directory / "ewms-pilot-data"
            # An infile by name: the preflight's container has directories as well.
            wait_until(lambda: any(data.glob("*/task-io/infile-*")), 30, "no event is taken", pause=0.0005)
            taken = time.monotonic()
            results.wait_for(1, 30, pilot.check)
            return (taken - pilot.started) * 1000, (results.times[0] - pilot.started) * 1000

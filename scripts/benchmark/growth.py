"""(g) A long life: whether an event costs a pilot more, in time or memory, the more it has done before. A stand-in
for Apptainer makes the pilot itself what is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass

import bare
import pilots
import procfs
from figures import Goal, Section
from pilots import Runtime
from queues import Collector, encode, fresh
from setting import BARE, OURS, PYTHON, Late, Place, Setting, progress

_SLOTS = 4
# How many events of the last ones before a mark tell how fast it is there.
_WINDOWS = {100: 80, 1_000: 800, 10_000: 2_000, 100_000: 10_000}
# In the queue at any time, so that the broker's work stays the same.
_BACKLOG, _BATCH = 1_000, 250
_TASK = "done {{OUTFILE}}"
_PYTHON_MOST, _PYTHON_SECS = 10_000, 60
_SECS = 420


@dataclass(frozen=True)
class _Mark:
    """What a pilot was like when it had done so many events."""

    at: float
    cpu: float
    resident: int
    share: int


def measure(setting: Setting) -> Section:
    """One run of each pilot, whatever the number of rounds: it is long enough."""
    last = setting.sized(100_000, 1_000)
    marks = [mark for mark in _WINDOWS if mark <= last]
    section = Section(
        "g",
        "Growth",
        f"One pilot, {_SLOTS} at once, {last:,} events with a shell script in Apptainer's place, files in memory; one "
        "run. Time and CPU an event over the last events before each mark (80, 800, 2,000, 10,000 of them). The bare "
        f"loop runs the same script. The Python pilot is ended after {_PYTHON_SECS} s.",
    )
    tasks = bare.prepare(setting, 1_000, _TASK, place=Place.MEMORY, program=str(setting.stand_in / "apptainer"))
    ended = bare.run_all(tasks, _SLOTS)
    for column in setting.pilots:
        most, seconds = (min(last, _PYTHON_MOST), _PYTHON_SECS) if column == PYTHON else (last, _SECS)
        seen, late = _pilot(setting, column, most, seconds)
        for mark in marks:
            if mark in seen:
                _add(section, column, mark, seen)
        if late:
            section.row("at 1,000: time an event", "ms").reasons[column] = late
        if column == OURS and last in seen and 1_000 in seen:
            grown = (seen[last].resident - seen[1_000].resident) / procfs.MIB
            section.row(f"memory at {last:,} beyond that at 1,000", "MiB", Goal(2)).add(OURS, grown)
            slower = _each(seen, last) / _each(seen, 1_000)
            section.row(f"time an event at {last:,}, that at 1,000 being 1", "×", Goal(1.05)).add(OURS, slower)
    section.row("at 1,000: time an event", "ms").add(BARE, (ended[-1] - ended[199]) / 800 * 1000)
    return section


def _each(seen: dict[int, _Mark], mark: int) -> float:
    before = mark - _WINDOWS[mark]
    return (seen[mark].at - seen[before].at) / _WINDOWS[mark] * 1000


def _add(section: Section, column: str, mark: int, seen: dict[int, _Mark]) -> None:
    label, end, begin = f"at {mark:,}", seen[mark], seen[mark - _WINDOWS[mark]]
    section.row(f"{label}: time an event", "ms").add(column, _each(seen, mark))
    section.row(f"{label}: own CPU an event", "ms").add(column, (end.cpu - begin.cpu) / _WINDOWS[mark] * 1000)
    section.row(f"{label}: memory, resident", "MiB").add(column, end.resident / procfs.MIB)
    section.row(f"{label}: memory, share", "MiB").add(column, end.share / procfs.MIB)


def _pilot(setting: Setting, column: str, total: int, seconds: float) -> tuple[dict[int, _Mark], str]:
    """What was seen at the marks that it reached, and why it reached no more."""
    looks = {mark for mark in _WINDOWS} | {mark - window for mark, window in _WINDOWS.items()}
    seen: dict[int, _Mark] = {}
    late = ""
    pilot = None

    def note(number: int, _body: bytes) -> None:
        if number in looks and pilot:
            now, spent = time.monotonic(), procfs.cpu_seconds(pilot.pid)
            seen[number] = _Mark(now, spent, *procfs.memory(pilot.pid))

    with fresh("growth") as queues, Collector(queues.outgoing, note) as results:
        bodies = (encode(f"event {number}") for number in range(total))
        with pilots.running(
            setting,
            column,
            queues,
            Runtime.STAND_IN,
            TASK_ARGS=_TASK,
            PREFLIGHT=False,
            MAX_CONCURRENT_TASKS=_SLOTS,
            PREFETCH=2 * _SLOTS,
        ) as pilot:
            began = time.monotonic()
            try:
                for sent in range(0, total, _BATCH):
                    left = seconds - (time.monotonic() - began)
                    results.wait_for(max(0, sent - _BACKLOG + _BATCH), left, pilot.check)
                    queues.publish([next(bodies) for _ in range(min(_BATCH, total - sent))])
                    if sent % 10_000 == 0:
                        progress(f"{column}: {sent:,} of {total:,} events")
                results.wait_for(total, seconds - (time.monotonic() - began), pilot.check)
            except Late:
                pilot.check()
                late = f"ended at {len(results.times):,} events after {time.monotonic() - began:.0f} s"
    return seen, late

"""(g) A long life: whether an event costs a pilot more, in time or memory, the more it has done before. A stand-in
for Apptainer makes the pilot itself what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import bare
import pilots
import procfs
from figures import Goal, Section
from pilots import Runtime
from queues import Collector, Queues, encode, fresh
from setting import BARE, OURS, PYTHON, Late, Place, Setting, progress

_SLOTS = 4
# How many events of the last ones before a mark tell how fast it is there.
_WINDOWS = {100: 80, 1_000: 800, 10_000: 2_000, 100_000: 10_000}
# In the queue at any time, so that the broker's work stays the same.
_BACKLOG, _BATCH = 1_000, 250
_TASK = "done {{OUTFILE}}"
_PYTHON_MOST, _PYTHON_SECS = 10_000, 60
_SECS = 420
# Turns of an old and a young pilot, and events in each.
_TURNS, _TURN = 8, 1_000


@dataclass(frozen=True)
class _Mark:
    """What a pilot was like when it had done so many events."""

    at: float
    cpu: float
    resident: int
    share: int


@dataclass
class _Seen:
    """Of one pilot."""

    marks: dict[int, _Mark] = field(default_factory=dict)
    late: str = ""
    turns: list[tuple[float, float]] = field(default_factory=list)


def measure(setting: Setting) -> Section:
    """One run of each pilot, whatever the number of rounds: it is long enough."""
    last = setting.sized(100_000, 1_000)
    marks = [mark for mark in _WINDOWS if mark <= last]
    section = Section(
        "g",
        "Growth",
        f"One pilot, {_SLOTS} at once, {last:,} events with a shell script in Apptainer's place, files in memory; one "
        "run. Time and CPU an event over the last events before each mark (80, 800, 2,000, 10,000 of them). At the end "
        f"it and a pilot that has just begun do {_TURN:,} events each in turn, {_TURNS} times. The bare loop runs the "
        f"same script. The Python pilot is ended after {_PYTHON_SECS} s.",
    )
    tasks = bare.prepare(setting, 1_000, _TASK, place=Place.MEMORY, program=str(setting.stand_in / "apptainer"))
    ended = bare.run_all(tasks, _SLOTS)
    for column in setting.pilots:
        most, seconds = (min(last, _PYTHON_MOST), _PYTHON_SECS) if column == PYTHON else (last, _SECS)
        life = _pilot(setting, column, most, seconds)
        seen = life.marks
        for mark in marks:
            if mark in seen:
                _add(section, column, mark, seen)
        if life.late:
            section.row("at 1,000: time an event", "ms").reasons[column] = life.late
        if column == OURS and last in seen and 1_000 in seen:
            grown = (seen[last].resident - seen[1_000].resident) / procfs.MIB
            section.row(f"memory at {last:,} beyond that at 1,000", "MiB", Goal(2)).add(OURS, grown)
            slower = section.row(f"time an event after {last:,}, that of a young pilot being 1", "×", Goal(1.05))
            for old, young in life.turns:
                slower.add(OURS, old / young)
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


@dataclass(frozen=True)
class _Life:
    """A pilot that works, and what it works on."""

    pilot: pilots.Pilot
    queues: Queues
    results: Collector

    def work(self, count: int, deadline: float, backlog: int = _BACKLOG, say: str = "") -> None:
        """So many further events, not all of which are in the queue at once."""
        end = time.monotonic() + deadline
        before = len(self.results.times)
        for sent in range(0, count, _BATCH):
            left = end - time.monotonic()
            self.results.wait_for(before + max(0, sent - backlog + _BATCH), left, self.pilot.check)
            batch = range(sent, min(sent + _BATCH, count))
            self.queues.publish([encode(f"event {number}") for number in batch])
            if say and sent % 10_000 == 0:
                progress(f"{say}: {sent:,} of {count:,} events")
        self.results.wait_for(before + count, end - time.monotonic(), self.pilot.check)

    def each(self, count: int) -> float:
        """Milliseconds an event, of the last so many but for those with which it began."""
        times = self.results.times[-count + _SLOTS :]
        return (times[-1] - times[0]) / (len(times) - 1) * 1000


@contextmanager
def _begun(setting: Setting, column: str, note: Callable[[int, bytes], None] | None = None) -> Iterator[_Life]:
    with fresh("growth") as queues, Collector(queues.outgoing, note) as results:
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
            yield _Life(pilot, queues, results)


def _pilot(setting: Setting, column: str, total: int, seconds: float) -> _Seen:
    """What was seen of it until it had done them all, or its time was over."""
    looks = {mark for mark in _WINDOWS} | {mark - window for mark, window in _WINDOWS.items()}
    seen = _Seen()
    begun: list[_Life] = []

    def note(number: int, _body: bytes) -> None:
        if number in looks and begun:
            pid = begun[0].pilot.pid
            now, spent = time.monotonic(), procfs.cpu_seconds(pid)
            seen.marks[number] = _Mark(now, spent, *procfs.memory(pid))

    with _begun(setting, column, note) as life:
        begun.append(life)
        began = time.monotonic()
        try:
            life.work(total, seconds, say=column)
        except Late:
            life.pilot.check()
            seen.late = f"ended at {len(life.results.times):,} events after {time.monotonic() - began:.0f} s"
        if column == OURS and not seen.late:
            seen.turns = _turns(setting, life)
    return seen


def _turns(setting: Setting, old: _Life) -> list[tuple[float, float]]:
    """Milliseconds an event of a pilot that did many, and of one that did few: in turn, because minutes lie
    between two marks of one pilot, in which the machine becomes faster and slower."""
    progress("an old and a young pilot in turn")
    count = setting.sized(_TURN, 250)
    with _begun(setting, OURS) as young:
        young.work(count, _SECS)
        turns = []
        for _ in range(setting.sized(_TURNS, 2)):
            pair = []
            for life in (old, young):
                life.work(count, _SECS, backlog=count)
                pair.append(life.each(count))
            turns.append((pair[0], pair[1]))
    return turns

"""(f) Many slots: how soon all of them run a task, though the events to take ahead are limited to one."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import bare
import pilots
from figures import Goal, Section
from queues import Collector, encode, fresh, wait_until
from setting import BARE, Late, Setting

# Says that it runs, then sleeps in the opening of a pipe until somebody opens its other end.
_TASK = "sh -c 'touch {{DATA_HUB}}/${EWMS_TASK_INFILE##*/}; read end <{{DATA_HUB}}/gate; cp {{INFILE}} {{OUTFILE}}'"
_FILLED_SECS = 20
# What a connected pilot has before the events come.
_BEFORE_SECS = 10


def measure(setting: Setting) -> Section:
    """Every column in turn."""
    slots = setting.sized(64, 8)
    section = Section(
        "f",
        f"{slots} slots, PREFETCH 1",
        f"{slots} events are published to a connected, idle pilot; the time until that many tasks run at the same "
        "time. Bare loop: all containers started at once.",
    )
    for _ in range(setting.rounds):
        filled = section.row("all slots filled", "s", Goal(times=0.5))
        filled.add(BARE, _bare(setting, slots))
        for column in setting.pilots:
            if column in filled.reasons:
                # It would only wait as long again.
                continue
            try:
                filled.add(column, _pilot(setting, column, slots))
            except Late as late:
                filled.reasons[column] = str(late)
    return section


class _Gate:
    """Holds tasks in a data hub until it is opened, and counts them."""

    def __init__(self, hub: Path) -> None:
        self._hub, self._pipe = hub, hub / "gate"
        self._open = threading.Event()
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> _Gate:
        self._hub.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self._pipe)
        self._keeper.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.set()
        time.sleep(0.2)
        self._ended.set()
        self._keeper.join()

    def open(self) -> None:
        """Lets go those that wait, and all that come."""
        self._open.set()

    def await_filled(self, slots: int) -> None:
        """Until so many wait here."""
        held = 0

        def filled() -> bool:
            nonlocal held
            held = len(os.listdir(self._hub)) - 1
            return held >= slots

        try:
            wait_until(filled, _FILLED_SECS, "", pause=0.005)
        except Late as late:
            raise Late(f"{held} of {slots} tasks run at once after {_FILLED_SECS} s") from late

    def _keep(self) -> None:
        self._open.wait()
        while not self._ended.wait(0.02):
            os.close(os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK))


def _bare(setting: Setting, slots: int) -> float:
    tasks = bare.prepare(setting, slots, _TASK)
    with _Gate(tasks[0].hub) as gate:
        loop = bare.Loop(slots)
        began = time.monotonic()
        for task in tasks:
            loop.feed(task)
        gate.await_filled(slots)
        took = time.monotonic() - began
        gate.open()
        loop.finish()
    return took


def _pilot(setting: Setting, column: str, slots: int) -> float:
    bodies = [encode(f"event {number}") for number in range(slots)]
    with fresh("slots") as queues, Collector(queues.outgoing) as results:
        with pilots.running(setting, column, queues, TASK_ARGS=_TASK, MAX_CONCURRENT_TASKS=slots) as pilot:
            queues.await_consumer()
            time.sleep(_BEFORE_SECS)
            with _Gate(pilot.directory / "ewms-pilot-data/data-hub") as gate:
                began = time.monotonic()
                queues.publish(bodies)
                gate.await_filled(slots)
                took = time.monotonic() - began
                gate.open()
                results.wait_for(slots, 60, pilot.check)
    return took

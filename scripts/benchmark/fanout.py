"""(h) Many pilots on one broker: what they cost it and the machine, whether each gets its part, and how they come
back after the broker was lost."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from statistics import median

import server
from figures import Goal, Section
from fleet import Fleet, sailing
from procfs import MIB
from queues import Collector, Queues, connected_again, declared, decode, encode, wait_until
from server import Server
from setting import OURS, Late, Setting, progress

_TASK = "pilot-{} {{OUTFILE}}"
_NO_STORM = 1 / 3
_OWN, _SHARED = "a queue each", "a shared queue"
_IDLE_SECS = 20
_BACK_WITHIN_SECS = 180

_Add = Callable[..., None]


def measure(setting: Setting) -> Section:
    """Both numbers of pilots, each with queues of their own and with a shared one; one run."""
    section = Section(
        "h",
        "Many pilots on one broker",
        "Pilots of one slot with a shell script in Apptainer's place, files in memory, started 40 a second; results "
        "go to one queue. Idle over 20 s, then ten events a pilot (five with 1,000) are published at once. Then the "
        "broker is killed and started again; each pilot has two connections. Cores are what pilots and broker used of "
        "the machine's together. One run; the Python pilot is left out, as a thousand of it take more memory than "
        "there is.",
    )
    for count in (10, 30) if setting.quick else (100, 1_000):
        for layout in (_OWN, _SHARED):
            progress(f"{count:,} pilots, {layout}")
            label = f"{count:,}, {layout}"
            try:
                _one(setting, section, count, layout, label)
            except Late as late:
                section.row(f"{label}: all connected after", "s").reasons[OURS] = str(late)
    return section


def _one(setting: Setting, section: Section, count: int, layout: str, label: str) -> None:
    def add(what: str, unit: str, value: float, goal: Goal | None = None) -> None:
        section.row(f"{label}: {what}", unit, goal).add(OURS, value)

    broker = Server.find()
    if broker.files() < 3 * count:
        raise Late(f"the broker may open {broker.files()} files, which is too few")
    events = count * (10 if count < 1_000 else 5)
    with declared("fan", count if layout == _OWN else 1) as queues:
        began = time.monotonic()
        with sailing(setting, queues, count, _TASK) as fleet:
            _await_connected(queues, fleet, count)
            add("all connected after", "s", time.monotonic() - began)
            _idle(setting, fleet, broker, add)
            done = _work(queues, fleet, broker, events, add)
            shares = [done[f"pilot-{number}"] for number in range(count)]
            add("events a pilot, least", "", min(shares))
            add("events a pilot, median", "", median(shares))
            add("events a pilot, most", "", max(shares))
            add("pilots without any", "", shares.count(0), Goal(0))
            if layout == _SHARED:
                back = _storm(queues, fleet, broker, count, add)
                done = _work(back, fleet, Server.find(), events, lambda *_figure: None)
                starved = sum(1 for number in range(count) if not done[f"pilot-{number}"])
                add("pilots without any, after the restart", "", starved, Goal(0))
            add("pilots lost", "", count - len(fleet.alive()), Goal(0))


def _await_connected(queues: list[Queues], fleet: Fleet, count: int) -> None:
    def connected() -> bool:
        if len(fleet.alive()) < count:
            raise Late(f"{count - len(fleet.alive())} pilots ended: {fleet.last_words()}")
        return sum(own.consumers() for own in queues) >= count

    wait_until(connected, 60 + count / 5, f"not all of {count} pilots are connected", pause=0.2)


def _idle(setting: Setting, fleet: Fleet, broker: Server, add: _Add) -> None:
    seconds = setting.sized(_IDLE_SECS, 5)
    time.sleep(2)
    served, spent = broker.cpu_seconds(), fleet.cost().cpu
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    cost = fleet.cost()
    add("idle: broker", "cores", (broker.cpu_seconds() - served) / took)
    add("idle: pilots", "cores", (cost.cpu - spent) / took)
    add("idle: memory a pilot, share", "MiB", cost.share / len(fleet.members) / MIB)
    add("idle: memory of the broker", "MiB", broker.resident() / MIB)


def _work(queues: list[Queues], fleet: Fleet, broker: Server, events: int, add: _Add) -> Counter[str]:
    """How many events each pilot did."""
    done: Counter[str] = Counter()

    def note(_number: int, body: bytes) -> None:
        done[str(decode(body)).strip()] += 1

    with Collector(queues[0].outgoing, note) as results:
        served, spent = broker.cpu_seconds(), fleet.cpu_seconds()
        began = time.monotonic()
        for number in range(events):
            queues[number % len(queues)].publish([encode(f"event {number}")])
        results.wait_for(events, 60 + events / 20)
        add("work: time to drain", "s", results.times[-1] - began)
        add("work: events a second", "1/s", events / (results.times[-1] - began))
        add("work: broker's CPU an event", "ms", (broker.cpu_seconds() - served) / events * 1000)
        add("work: a pilot's CPU an event", "ms", (fleet.cpu_seconds() - spent) / events * 1000)
    return done


def _storm(queues: list[Queues], fleet: Fleet, broker: Server, count: int, add: _Add) -> list[Queues]:
    """Breaks and restarts the broker; gives the queues with a connection that lives."""
    with server.Watch() as connections:
        killed = time.monotonic()
        broker.kill()
        server.start()
        queues = connected_again(queues)

        def all_back() -> bool:
            return queues[0].consumers() >= count and connections.open >= 2 * count

        with suppress(Late):
            wait_until(all_back, _BACK_WITHIN_SECS, "not all are back", pause=0.2)
            add("restart: all back, after the first, in", "s", time.monotonic() - connections.made[0])
    made = connections.made
    missing = count - queues[0].consumers()
    add("restart: broker away for", "s", made[0] - killed)
    add(f"restart: pilots that don't listen after {_BACK_WITHIN_SECS} s", "", missing, Goal(0))
    add("restart: connections made, 1 being each once", "×", len(made) / (2 * count))
    busiest = max(bisect_left(made, moment + 1) - number for number, moment in enumerate(made))
    add("restart: connections in the busiest second", "1/s", busiest)
    add("restart: busiest second's part of all", "", busiest / (2 * count), Goal(_NO_STORM, words="≤ a third"))
    return queues

"""(i) A far broker: what its distance costs short tasks whose pilot may hold one event."""

from __future__ import annotations

import pilots
from delay import far_broker
from figures import Goal, Row, Section
from queues import Collector, encode, fresh
from setting import OURS, PYTHON, Late, Setting

_EACH_WAY_SECS = 0.05
_FACTOR = 1.15
_SLOWEST_EVENT_SECS = 5.0
# The first events of a pilot, during which it measures how far its broker is.
_FIRST = 10


def measure(setting: Setting) -> Section:
    """Near and far in turn, each with every pilot in turn."""
    section = Section(
        "i",
        "A far broker",
        "One slot, PREFETCH 1, tasks that copy their infile. Far: through a proxy that delays all by "
        f"{_EACH_WAY_SECS * 1000:.0f} ms in each direction. Time an event as in (a), without the first {_FIRST}.",
    )
    for _ in range(setting.rounds):
        near = section.row("near", "ms")
        far = section.row("100 ms away", "ms")
        for column in setting.pilots:
            _add(near, column, setting, None)
        near_ms = near.median(OURS)
        if near_ms is not None:
            words = f"≤ {_FACTOR} × near"
            far.goal = Goal(_FACTOR * near_ms, words=words)
        with far_broker(_EACH_WAY_SECS) as address:
            for column in setting.pilots:
                _add(far, column, setting, address)
    return section


def _add(row: Row, column: str, setting: Setting, address: str | None) -> None:
    # The Python pilot needs many times as long.
    count = _FIRST + setting.sized(10 if column == PYTHON else 40, 10)
    try:
        row.add(column, _pilot(setting, column, count, address) * 1000)
    except Late as late:
        row.reasons[column] = str(late)


def _pilot(setting: Setting, column: str, count: int, address: str | None) -> float:
    others: dict[str, object] = {"MAX_CONCURRENT_TASKS": 1, "PREFETCH": 1}
    if address:
        others |= {f"QUEUE_{direction}_BROKER_ADDRESS": address for direction in ("INCOMING", "OUTGOING")}
    with fresh("far") as queues:
        queues.fill([encode(f"event {number}") for number in range(count)])
        with Collector(queues.outgoing) as results:
            with pilots.running(setting, column, queues, **others) as pilot:
                results.wait_for(count, 20 + count * _SLOWEST_EVENT_SECS, pilot.check)
        steady = results.times[_FIRST:]
        return (steady[-1] - steady[0]) / (len(steady) - 1)

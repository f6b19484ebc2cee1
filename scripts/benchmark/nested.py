"""(j) A pilot that runs in a container itself, as with the container template: there a start costs most."""

from __future__ import annotations

from dataclasses import replace

import pilots
from figures import Goal, Row, Section
from queues import Collector, encode, fresh
from setting import BUILDS, OURS, Late, Setting

_OUTER = ["/usr/bin/apptainer", "--quiet", "exec", "--bind", "/bench", "--bind", "/images"]
# The execution point's own root, which has Apptainer and all that the pilot needs; `scripts/bench` binds it here.
_IMAGE = "/bench/root"
_SLOWEST_EVENT_SECS = 5.0
_FIRST = 4
_FACTOR = 0.75


def measure(setting: Setting) -> Section:
    """Every build in turn, ours also without containers that wait."""
    section = Section(
        "j",
        "Nested",
        "The pilot in a container, one slot, PREFETCH 1, tasks that copy their infile. Time an event as in (a), "
        f"without the first {_FIRST}. Cold: each container is started for its event (EWMS_PILOT_WARM_START=False).",
    )
    builds = {name: words for name, words in setting.programs.items() if name in BUILDS}
    programs = {name: [*_OUTER, "--bind", str(setting.work), _IMAGE, *words] for name, words in builds.items()}
    outer = replace(setting, programs=programs)
    for _ in range(setting.rounds):
        cold = section.row("cold", "ms")
        _add(cold, OURS, outer, WARM_START="False")
        waiting = section.row("waiting", "ms", Goal(_FACTOR * (cold.median(OURS) or 0), words=f"≤ {_FACTOR} × cold"))
        for column in programs:
            _add(waiting, column, outer)
    return section


def _add(row: Row, column: str, setting: Setting, **others: object) -> None:
    count = _FIRST + setting.sized(24, 8)
    try:
        row.add(column, _pilot(setting, column, count, others) * 1000)
    except Late as late:
        row.reasons[column] = str(late)


def _pilot(setting: Setting, column: str, count: int, others: dict[str, object]) -> float:
    with fresh("nested") as queues:
        queues.fill([encode(f"event {number}") for number in range(count)])
        with Collector(queues.outgoing) as results:
            with pilots.running(setting, column, queues, **others) as pilot:
                results.wait_for(count, 20 + count * _SLOWEST_EVENT_SECS, pilot.check)
        steady = results.times[_FIRST:]
        return (steady[-1] - steady[0]) / (len(steady) - 1)

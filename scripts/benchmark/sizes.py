"""(e) Large events: how long one takes through a pilot and back, and how much memory the pilot needs for it."""

from __future__ import annotations

import random
import string
import time

import bare
import pilots
import procfs
from figures import Goal, Section
from queues import Collector, encode, fresh, pack, unpack
from setting import BARE, PYTHON, Late, Setting

_KIB, _MIB = 1024, 1024 * 1024
# RabbitMQ 4.0's default `max_message_size`, less what the encoders of two programs may differ by.
_SIZES = {"1 KB": _KIB, "1 MB": _MIB, "8 MB": 8 * _MIB, "16 MB": 16 * _MIB - 8 * _KIB}
_EVENTS = 3
_PATIENCE_SECS = 60


def measure(setting: Setting) -> Section:
    """Every size in turn, in it every column."""
    section = Section(
        "e",
        "Large events",
        "An event of random letters, so that its compressed body has this size (16 MB is all that RabbitMQ takes), is "
        "published to an idle pilot whose task copies it; the time until its result has arrived. Bare: twice the time "
        "in which the same body goes through a queue of the broker by itself, and one container that copies the same "
        "file, and zstd (level 3) both ways, all in C; not JSON. Memory: the most that was "
        f"resident, less what was before the first of {_EVENTS} such events, as a multiple of the body.",
    )
    for _ in range(setting.rounds):
        for label, size in _SIZES.items():
            if setting.quick and size > _MIB and size != max(_SIZES.values()):
                continue
            text = _text(size)
            whole = section.row(f"{label}: time", "ms", Goal(times=1.25))
            memory = section.row(f"{label}: memory, in bodies", "×", Goal(4)) if size >= _MIB else None
            for name, value in _limit(setting, text).items():
                section.row(f"{label}: {name}", "ms").add(BARE, value)
            for column in setting.pilots:
                try:
                    times, most = _pilot(setting, column, text)
                except Late as late:
                    whole.reasons[column] = str(late)
                    continue
                for value in times:
                    whole.add(column, value)
                if memory:
                    memory.add(column, most / size)
    return section


def _text(size: int) -> str:
    """Letters that are this large when they are encoded, or a little less."""
    source = random.Random(size)
    alphabet = (string.ascii_letters + string.digits + "+/").encode()
    letters = source.randbytes(2 * size).translate(bytes(alphabet[byte % 64] for byte in range(256))).decode()
    low, high = 0, len(letters)
    while high - low > 64:
        middle = (low + high) // 2
        low, high = (middle, high) if len(encode(letters[:middle])) <= size else (low, middle)
    return letters[:low]


def _limit(setting: Setting, text: str) -> dict[str, float]:
    body = encode(text)
    began = time.monotonic()
    container = bare.prepare(setting, 1, event=text)[0]
    began = time.monotonic()
    ran = container.run() - began
    with fresh("pass") as queues, Collector(queues.incoming) as arrivals:
        queues.publish([encode("first")])
        arrivals.wait_for(1, _PATIENCE_SECS)
        began = time.monotonic()
        queues.publish([body])
        arrivals.wait_for(2, _PATIENCE_SECS)
        passed = arrivals.times[1] - began
    began = time.monotonic()
    pack(unpack(body))
    packed = time.monotonic() - began
    return {
        "time": (ran + 2 * passed + packed) * 1000,
        "one container": ran * 1000,
        "one way through the broker": passed * 1000,
        "zstd, both ways": packed * 1000,
    }


def _pilot(setting: Setting, column: str, text: str) -> tuple[list[float], float]:
    times = []
    with fresh("size") as queues, Collector(queues.outgoing) as results:
        with pilots.running(setting, column, queues) as pilot:
            queues.publish([encode("first")])
            results.wait_for(1, _PATIENCE_SECS, pilot.check)
            time.sleep(1.5 if column == PYTHON else 0.2)
            procfs.reset_peak(pilot.pid)
            before = procfs.resident(pilot.pid)
            body = encode(text)
            for number in range(2, 2 + _EVENTS):
                began = time.monotonic()
                queues.publish([body])
                results.wait_for(number, _PATIENCE_SECS, pilot.check)
                times.append((results.times[-1] - began) * 1000)
            return times, procfs.peak(pilot.pid) - before

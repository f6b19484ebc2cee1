"""What the kernel tells about processes from outside, without asking them: CPU time, memory, wake-ups. The same
readings for every pilot."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

MIB = 1024 * 1024
_KIB = 1024


def cpu_seconds(pid: int) -> float:
    """CPU time of this process alone, all of its threads that ever were; its children not counted."""
    # The clock of another process, see clock_getcpuclockid(3): exact, where /proc/PID/stat counts in 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int) -> tuple[int, int]:
    """Bytes: resident, and its share of them (what it shares with others, divided by their number)."""
    values = _fields(f"/proc/{pid}/smaps_rollup")
    return values["Rss"] * _KIB, values["Pss"] * _KIB


def resident(pid: int) -> int:
    """Bytes; of anybody's process."""
    return _fields(f"/proc/{pid}/status")["VmRSS"] * _KIB


def peak(pid: int) -> int:
    """Bytes: most that was ever resident, or since `reset_peak`."""
    return _fields(f"/proc/{pid}/status")["VmHWM"] * _KIB


def reset_peak(pid: int) -> None:
    """From here on `peak` tells of what comes."""
    path = Path(f"/proc/{pid}/clear_refs")
    try:
        path.write_text("5")
    except PermissionError:
        # A pilot lets no other process of its user near its memory.
        subprocess.run(["sudo", "tee", path], input=b"5", stdout=subprocess.DEVNULL, check=True)


def switches(pid: int) -> dict[int, int]:
    """How often each thread was put on a core again: its wake-ups, and being interrupted by others."""
    counts = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            values = _fields(str(thread / "status"))
        except FileNotFoundError:
            continue
        counts[int(thread.name)] = values["voluntary_ctxt_switches"] + values["nonvoluntary_ctxt_switches"]
    return counts


def children(pid: int) -> list[int]:
    """Of all its threads."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(child) for child in (thread / "children").read_text().split()]
        except FileNotFoundError:
            continue
    return found


def called(pid: int) -> str:
    """The first word of its command line; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def programs(name: str) -> list[int]:
    """All processes of this program."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if Path(called(pid)).name == name]


def _fields(path: str) -> dict[str, int]:
    values = {}
    try:
        text = Path(path).read_text()
    except PermissionError:
        # As above.
        text = subprocess.run(["sudo", "cat", path], capture_output=True, check=True, text=True).stdout
    for line in text.splitlines():
        key, _, value = line.partition(":")
        first = value.split()
        if first and first[0].isdigit():
            values[key] = int(first[0])
    return values

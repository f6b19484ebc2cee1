"""The broker as a server: what it costs, and how it is ended and started again. Nobody but the section that
breaks it, the last one, uses the latter."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import procfs
from setting import ADDRESS, Late

# Of proc(5), /proc/net/tcp.
_ESTABLISHED, _PORT = "01", f":{int(ADDRESS.rsplit(':')[1]):04X}"
_LOOK_EVERY_SECS = 0.1


@dataclass(frozen=True)
class Server:
    """The process that runs now."""

    pid: int

    @staticmethod
    def find() -> Server:
        """There is one in the execution point."""
        pids = procfs.programs("beam.smp")
        if len(pids) != 1:
            raise Late(f"{len(pids)} brokers run")
        return Server(pids[0])

    def cpu_seconds(self) -> float:
        """So far."""
        return procfs.cpu_seconds(self.pid)

    def resident(self) -> int:
        """Bytes."""
        return procfs.resident(self.pid)

    def kill(self) -> None:
        """Ends it as a power failure does; with it, all connections."""
        subprocess.run(["sudo", "kill", "-KILL", str(self.pid)], check=True)

    def files(self) -> int:
        """How many files it may have open, connections included."""
        for line in Path(f"/proc/{self.pid}/limits").read_text().splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[3])
        raise Late("the broker's limits can't be read")


def start() -> Server:
    """Starts it again with what it had; returns when it answers."""
    started = subprocess.run(["sudo", "ep-start", "rabbitmq"], capture_output=True, text=True, timeout=180)
    if started.returncode:
        raise Late(f"the broker does not start again: {started.stderr.strip()[-200:]}")
    return Server.find()


class Watch(threading.Thread):
    """Sees connections being made. By the kernel's table, because the broker's log leaves out what comes too fast."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.made: list[float] = []
        self.open = len(_clients())
        self._ended = threading.Event()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        before = _clients()
        while not self._ended.wait(_LOOK_EVERY_SECS):
            now = _clients()
            self.made += [time.monotonic()] * len(now - before)
            self.open = len(now)
            before = now


def _clients() -> set[str]:
    """The other ends of the broker's connections."""
    lines = (line.split(maxsplit=4) for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {line[2] for line in lines if line[3] == _ESTABLISHED and line[1].endswith(_PORT)}

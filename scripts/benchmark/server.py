"""The broker as a server: what it costs, and how it is ended and started again. Nobody but the section that
breaks it, the last one, uses the latter."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import procfs
from setting import Late

_LOG = "/var/log/rabbitmq/rabbit@localhost.log"
_AUTHENTICATED = re.compile(r"^(\S+ \S+) \[info\] .*authenticated and granted access")


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


def logged_in(since: datetime) -> list[float]:
    """When clients were let in, by the broker's log: seconds since the epoch."""
    text = subprocess.run(["sudo", "cat", _LOG], check=True, capture_output=True, text=True, errors="replace").stdout
    found = (_AUTHENTICATED.match(line) for line in text.splitlines())
    times = [datetime.fromisoformat(match[1]).timestamp() for match in found if match]
    return [time for time in times if time >= since.timestamp()]

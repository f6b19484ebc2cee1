"""Starts the pilots, ours and the Python one, with the same variables, and ends what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import procfs
from queues import Queues
from setting import ADDRESS, BUILDS, COPY, IMAGE, Late, Place, Setting

_PATH = "/usr/local/bin:/usr/bin:/bin"
# Idle exit is not what is measured: longer than any section, ended by a signal.
_LONG = "3600"


class Runtime(Enum):
    """What a pilot finds under the name of `apptainer`. With the stand-in its files are in memory."""

    APPTAINER = "apptainer"
    STAND_IN = "stand-in"


@dataclass(frozen=True)
class Pilot:
    """One that was started."""

    column: str
    process: subprocess.Popen[bytes]
    directory: Path
    started: float

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def processes(self) -> list[int]:
        """Its own ones: with the guardian, which the Python pilot doesn't have; no tasks."""
        guardians = [child for child in procfs.children(self.pid) if procfs.called(child) == "ewms-guardian"]
        return [self.pid, *guardians]

    def check(self) -> None:
        """That it still runs."""
        if self.process.poll() is not None:
            raise Late(f"the pilot ended with {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """Of its log."""
        lines = (self.directory / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def stop(self) -> None:
        """Both pilots end on SIGTERM when they are idle; what is left of it is killed."""
        for number, patience in [(signal.SIGTERM, 15), (signal.SIGTERM, 15), (signal.SIGKILL, 15)]:
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        # Containers of a Python pilot outlive it.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def variables(queues: Queues, directory: Path, **others: object) -> dict[str, str]:
    """The whole environment. Names of `others` are without their prefix."""
    values = {
        "TASK_IMAGE": IMAGE,
        "TASK_ARGS": COPY,
        "DATA_DIR_PARENT_PATH_ON_HOST": str(directory),
        "QUEUE_INCOMING": queues.incoming,
        "QUEUE_OUTGOING": queues.outgoing,
        "TIMEOUT_QUEUE_INCOMING": _LONG,
    }
    for direction in ("INCOMING", "OUTGOING"):
        values[f"QUEUE_{direction}_BROKER_TYPE"] = "rabbitmq"
        values[f"QUEUE_{direction}_BROKER_ADDRESS"] = ADDRESS
    path = str(others.pop("path", _PATH))
    values.update({name: str(value) for name, value in others.items()})
    env = {f"EWMS_PILOT_{name}": value for name, value in values.items()}
    env |= {"PATH": path, "HOME": str(directory), "LANG": "C.UTF-8"}
    return env | {"_EWMS_PILOT_CONTAINER_PLATFORM": "apptainer"}


def start(
    setting: Setting, column: str, queues: Queues, runtime: Runtime = Runtime.APPTAINER, **others: object
) -> Pilot:
    """Starts one in a directory of its own; `others` are variables without their prefix."""
    place = Place.DISK
    if runtime is Runtime.STAND_IN:
        place = Place.MEMORY
        others["path"] = f"{setting.stand_in}:{_PATH}"
    directory = setting.directory("pilot", place)
    env = variables(queues, directory, **others)
    with open(directory / "log", "wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            setting.programs[column],
            env=env,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Pilot(column, process, directory, began)


@contextmanager
def running(
    setting: Setting, column: str, queues: Queues, runtime: Runtime = Runtime.APPTAINER, **others: object
) -> Iterator[Pilot]:
    """Starts one and ends it."""
    pilot = start(setting, column, queues, runtime, **others)
    try:
        yield pilot
    except Late as late:
        # Its log says more than that something did not come.
        pilot.check()
        raise Late(f"{late}; its log ends: {pilot.last_words()}" if column in BUILDS else str(late)) from late
    finally:
        pilot.stop()

"""The bare loop: the containers and nothing else. Same image, flags, binds, directories and environment as our
pilot's; all is prepared beforehand, output goes to /dev/null, nobody looks at the results. What a pilot needs
beyond it is its own."""

from __future__ import annotations

import os
import queue
import shlex
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from setting import COPY, IMAGE, Place, Setting

_APPTAINER = "/usr/bin/apptainer"
_NOTHING = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]


@dataclass(frozen=True)
class Task:
    """One container, ready to be started."""

    program: str
    arguments: list[str]
    env: dict[str, str]
    hub: Path

    def run(self) -> float:
        """Starts it and waits for its end; when that was."""
        pid = os.posix_spawn(self.program, self.arguments, self.env, file_actions=_NOTHING, setsid=True)
        _, status = os.waitpid(pid, 0)
        ended = time.monotonic()
        if status:
            raise RuntimeError(f"{self.arguments} ended with {os.waitstatus_to_exitcode(status)}")
        return ended


def prepare(
    setting: Setting,
    count: int,
    arguments: str = COPY,
    event: str = "event",
    place: Place = Place.DISK,
    program: str = _APPTAINER,
) -> list[Task]:
    """Makes the directories of so many tasks, as src/task/staging.rs does, and src/container/command.rs's
    commands."""
    top = setting.directory("bare", place)
    hub, apptainer = top / "ewms-pilot-data/data-hub", top / "ewms-pilot-scratch/apptainer"
    hub.mkdir(parents=True)
    apptainer.mkdir(parents=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(top), "LANG": "C.UTF-8"}
    env |= {"TMPDIR": str(apptainer), "APPTAINER_TMPDIR": str(apptainer)}
    env |= {"APPTAINER_CACHEDIR": str(apptainer / "apptainer-cache")}
    return [_task(top, str(number), arguments, event, program, env) for number in range(count)]


def _task(top: Path, name: str, arguments: str, event: str, program: str, env: dict[str, str]) -> Task:
    own, scratch = top / "ewms-pilot-data" / name, top / "ewms-pilot-scratch" / name
    for directory in (own / "task-io", own / "outputs", scratch / "tmp", scratch / "var_tmp", scratch / "home"):
        directory.mkdir(parents=True)
    (own / "task-io" / f"infile-{name}.in").write_text(event)
    hub, io = "/ewms-pilot-data/data-hub", "/ewms-pilot-data/task-io"
    infile, outfile = f"{io}/infile-{name}.in", f"{io}/outfile-{name}.out"
    argv = ["apptainer", "run", "--containall", "--no-eval", "--workdir", str(scratch)]
    argv += ["--bind", f"{top}/ewms-pilot-data/data-hub:{hub}", "--bind", f"{own}/task-io:{io}", IMAGE]
    argv += [
        word.replace("{{INFILE}}", infile).replace("{{OUTFILE}}", outfile).replace("{{DATA_HUB}}", hub)
        for word in shlex.split(arguments)
    ]
    inside = {"DATA_HUB_DIR": hub, "INFILE": infile, "OUTFILE": outfile}
    env = env | {f"APPTAINERENV_EWMS_TASK_{key}": value for key, value in inside.items()}
    return Task(program, argv, env, top / "ewms-pilot-data/data-hub")


class Loop:
    """So many slots, each of which starts the next task that is there."""

    def __init__(self, slots: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[int, Task] | None] = queue.SimpleQueue()
        self._ended: dict[int, float] = {}
        self._fed = 0
        self._failures: list[BaseException] = []
        self._slots = [threading.Thread(target=self._work, daemon=True) for _ in range(slots)]
        for slot in self._slots:
            slot.start()

    def feed(self, task: Task) -> None:
        """Runs it as soon as a slot is free."""
        self._tasks.put((self._fed, task))
        self._fed += 1

    def finish(self) -> list[float]:
        """Waits for all; when each ended, in the order in which they were fed."""
        for _ in self._slots:
            self._tasks.put(None)
        for slot in self._slots:
            slot.join()
        if self._failures:
            raise self._failures[0]
        return [self._ended[number] for number in range(self._fed)]

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            number, task = item
            try:
                self._ended[number] = task.run()
            except (OSError, RuntimeError) as error:
                self._failures.append(error)
                return


def run_all(tasks: list[Task], slots: int) -> list[float]:
    """All of them, as fast as they go; when each ended, in order of time."""
    loop = Loop(slots)
    for task in tasks:
        loop.feed(task)
    return sorted(loop.finish())

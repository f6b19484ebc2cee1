"""Where everything is and how much of it is to be done. Every section gets one; nobody else reads arguments."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

ADDRESS = "127.0.0.1:5672"
IMAGE = "/images/busybox"
# What the smallest task that has a result does; the arguments of every task here but where it says so.
COPY = "cp {{INFILE}} {{OUTFILE}}"

BARE, PYTHON, BEFORE, OURS = "bare loop", "Python pilot", "before", "ours"
# The columns that are builds of this project.
BUILDS = (BEFORE, OURS)


class Place(Enum):
    """Where files are: on disk as on any EP, or in memory, where nothing but the programs takes time."""

    DISK = "disk"
    MEMORY = "memory"


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark."""

    work: Path
    memory: Path
    rounds: int
    quick: bool
    programs: dict[str, list[str]]
    stand_in: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def pilots(self) -> list[str]:
        """The columns that are pilots."""
        return list(self.programs)

    def sized(self, full: int, quick: int) -> int:
        """How many, in a full run and in a quick one."""
        return quick if self.quick else full

    def directory(self, label: str, place: Place) -> Path:
        """A new directory."""
        top = self.work if place is Place.DISK else self.memory
        path = top / f"{label}-{next(self._numbers)}"
        path.mkdir()
        return path


def progress(text: str) -> None:
    """For whoever watches; not part of the result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Late(Exception):
    """Something did not happen before its deadline, or can't be done: a figure without a value."""

"""Figures: values of every round for every column, what they ought to be, and how they are shown. Measures
nothing."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from setting import BARE, BEFORE, OURS, PYTHON

COLUMNS = (BARE, PYTHON, BEFORE, OURS)
_WIDTH = 110


@dataclass(frozen=True)
class Goal:
    """What ours is to be at most: so many times another column, plus a constant of the row's unit."""

    constant: float = 0.0
    times: float = 0.0
    of: str = BARE
    words: str = ""

    def limit(self, row: Row) -> float | None:
        """In the row's unit."""
        if not self.times:
            return self.constant
        other = row.median(self.of)
        return None if other is None else self.times * other + self.constant

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.times:
            return f"≤ {self.times:g} × {self.of}"
        return f"≤ {self.constant:g}"


@dataclass
class Row:
    """One figure."""

    what: str
    unit: str
    goal: Goal | None = None
    rounds: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, column: str, value: float) -> None:
        """One round's value."""
        self.rounds.setdefault(column, []).append(value)

    def median(self, column: str) -> float | None:
        """Over the rounds."""
        values = self.rounds.get(column)
        return median(values) if values else None

    def verdict(self) -> str:
        """`ok` or `MISSED`; nothing where there is no goal or it can't be told."""
        ours = self.median(OURS)
        limit = self.goal.limit(self) if self.goal else None
        if ours is None or limit is None:
            return "?" if self.goal else ""
        return "ok" if ours <= limit else "MISSED"

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of it."""
        return {
            "what": self.what,
            "unit": self.unit,
            "rounds": self.rounds,
            "medians": {column: self.median(column) for column in self.rounds},
            "reasons": self.reasons,
            "goal": str(self.goal) if self.goal else None,
            "verdict": self.verdict() or None,
        }


@dataclass
class Section:
    """The rows of one letter, and how they were measured."""

    letter: str
    title: str
    method: str
    rows: list[Row] = field(default_factory=list)

    def row(self, what: str, unit: str, goal: Goal | None = None) -> Row:
        """The row of this name, which is made if there is none."""
        for row in self.rows:
            if row.what == what:
                return row
        self.rows.append(Row(what, unit, goal))
        return self.rows[-1]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"title": self.title, "method": self.method, "rows": [row.as_json() for row in self.rows]}

    def as_text(self) -> str:
        """A table for people: medians, ratios, goals. Columns without a value are left out."""
        columns = [column for column in COLUMNS if any(column in row.rounds for row in self.rows)]
        others = [column for column in columns if column != OURS]
        lines = [["", "", *columns, *(f"ours/{column}" for column in others), "goal", ""]]
        for row in self.rows:
            ours = row.median(OURS)
            cells = [row.what, row.unit, *(number(row.median(column)) for column in columns)]
            cells += [ratio(ours, row.median(column)) for column in others]
            lines.append([*cells, str(row.goal) if row.goal else "", row.verdict()])
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        text = [f"\n({self.letter}) {self.title}", *textwrap.wrap(self.method, _WIDTH)]
        for line in lines:
            words = [cell.ljust(width) for cell, width in zip(line[:2], widths)]
            numbers = [cell.rjust(width) for cell, width in zip(line[2:-2], widths[2:])]
            text.append("  ".join([*words, *numbers, line[-2].ljust(widths[-2]), line[-1]]).rstrip())
        for row in self.rows:
            text += [f"  - {row.what}, {column}: {reason}" for column, reason in row.reasons.items()]
        return "\n".join(text)


def number(value: float | None) -> str:
    """With three digits that count."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def ratio(ours: float | None, other: float | None) -> str:
    """Of two values, where both are."""
    return f"{ours / other:.3f}" if ours is not None and other else "-"

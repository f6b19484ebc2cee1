"""Runs the sections, prints a table for each, keeps every figure. Started by scripts/bench in the execution
point, with RabbitMQ running."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

from machine import describe
from setting import BEFORE, OURS, PYTHON, Setting, progress

_MODULES = {
    "a": "noop",
    "b": "arrivals",
    "c": "idle",
    "d": "startup",
    "e": "sizes",
    "f": "slots",
    "g": "growth",
    "h": "fanout",
    "i": "far",
    "j": "nested",
}


def main() -> int:
    """All that was asked for; 1 if a section could not be measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", default=",".join(_MODULES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--skip-python", action="store_true")
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--profile", required=True)
    given = parser.parse_args()
    letters = given.only.replace(",", " ").split()
    if not set(letters) <= set(_MODULES):
        parser.error(f"--only {given.only}: sections are {', '.join(_MODULES)}")
    # What is cleaned up on the way out is so as well when somebody ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    programs = {OURS: ["/bench/ewms-pilot"]}
    if given.before:
        programs = {BEFORE: ["/bench/before"]} | programs
    if not given.skip_python:
        programs = {PYTHON: ["/opt/python-pilot/bin/python", "-m", "ewms_pilot"]} | programs
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=Path.home()))
    memory = Path(tempfile.mkdtemp(prefix="bench-", dir="/bench/memory"))
    setting = Setting(
        work=work,
        memory=memory,
        rounds=given.rounds or (1 if given.quick else 3),
        quick=given.quick,
        programs=programs,
        stand_in=Path(__file__).resolve().parent / "stand-in",
    )
    head = describe(given.commit, given.profile, PYTHON in programs)
    for name, value in head.items():
        print(f"{name + ':':14} {value}")
    print(f"{'figures:':14} medians of {setting.rounds} rounds, columns in turn", flush=True)
    kept: dict[str, object] = {"machine": head, "rounds": setting.rounds, "quick": setting.quick}
    sections: dict[str, object] = {}
    kept["sections"] = sections
    failed = []
    for letter in letters:
        began = time.monotonic()
        progress(f"section {letter}")
        try:
            section = import_module(_MODULES[letter]).measure(setting)
        except Exception as error:  # the others may still be measured
            progress(f"section {letter} failed: {error!r}")
            traceback.print_exc()
            failed.append(letter)
            continue
        finally:
            # Nothing of one section weighs on the next.
            for left in (*work.iterdir(), *memory.iterdir()):
                shutil.rmtree(left, ignore_errors=True)
        print(section.as_text(), flush=True)
        sections[letter] = section.as_json() | {"took_secs": round(time.monotonic() - began, 1)}
        given.json.write_text(json.dumps(kept, indent=1))
    for top in (work, memory):
        shutil.rmtree(top, ignore_errors=True)
    if failed:
        print(f"\nnot measured: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

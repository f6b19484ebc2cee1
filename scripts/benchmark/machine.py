"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def describe(commit: str, profile: str, with_python: bool) -> dict[str, str]:
    """For the head of the output."""
    cpu = _field("/proc/cpuinfo", "model name")
    kib = int(_field("/proc/meminfo", "MemTotal").split()[0])
    versions = {
        "machine": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {kib / 1024 / 1024:.1f} GiB",
        "kernel": platform.release(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "apptainer": _output("apptainer", "--version").rsplit(" ", 1)[-1],
        "rabbitmq": _output("sudo", "rabbitmqctl", "--quiet", "version").splitlines()[-1],
        "pilot": f"commit {commit}, profile {profile}",
    }
    if with_python:
        show = "from importlib.metadata import version; print(version('ewms-pilot'))"
        python = _output("/opt/python-pilot/bin/python", "-c", show)
        versions["Python pilot"] = f"{python}, Python {platform.python_version()}"
    return versions


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"

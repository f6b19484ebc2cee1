"""Records as pilots bring them home, made up: for tests of the report, and for measuring it by hand.

usage: records.py TASKS [PILOTS [DIRECTORY [SITES]]]

One file on stdout, or one a pilot in DIRECTORY. The same arguments make the same records. Of the sites,
SITE-03 has a fault of its machines in 30 % of its tasks, host h7 of SITE-05 fails nearly all, one pilot in
40 leaves no end, and the other tasks fail at a rate of 2 %.
"""

import json
import random
import sys
import uuid

TRACEBACK = """task failed (exit code 1): Traceback (most recent call last):
  File "/opt/scan/pixel.py", line 212, in reconstruct
ValueError: the fit did not converge"""
ERRORS = [
    ("task", "ContainerRunError", TRACEBACK),
    ("task", "TimeoutError", "task failed: [Timeout-Error] timed out after 3600s"),
    ("event", "EventDecodeError", "the body is no zstd frame"),
    ("broker", "PublishError", "the broker did not confirm the result within 60 s"),
]
MACHINE = ("ep", "ContainerRunError", "task failed (exit code 255): [Apptainer-Error] mount hook function failure: fuse-overlayfs: cannot mount")
MIB = 1 << 20


def pilot(index, tasks, random, sites=12):
    """The lines of one pilot."""
    site, host, slots = index % sites, index // sites % 8, 4
    common = {"format": 1}
    identity = {
        "pilot_id": str(uuid.UUID(int=random.getrandbits(128))),
        "host": f"h{host}.site-{site:02}.example.org",
        "site": f"SITE-{site:02}",
    }

    def line(kind, **fields):
        return common | {"kind": kind} | identity | fields

    start = round(1_790_000_000 + random.random() * 3600, 3)
    yield line(
        "pilot_start", version="0.1.0" if index % 10 else "0.0.9", taskforce_uuid="tf-sky-7", started_unix_secs=start, job_id=f"4711.{index}", slots=slots, window=2 * slots,
        requested_cpus=slots, requested_memory_bytes=slots * 2048 * MIB, requested_disk_bytes=slots * 4096 * MIB,
        max_runtime_secs=86400.0,
    )
    connected = start + 20 + random.random() * 40
    free = [connected + random.random() * 10 for _ in range(slots)]
    first, busy = min(free), 0.0
    counts = dict.fromkeys(["succeeded", "failed", "given_back"], 0)
    for number in range(tasks):
        slot = free.index(min(free))
        began = free[slot]
        fault, chance = None, random.random()
        if site == 3 and chance < 0.3 or site == 5 and host == 7 and chance < 0.9:
            fault = MACHINE
        elif chance > 0.98:
            fault = random.choice(ERRORS)
        wall = 4.0 if fault is MACHINE else random.lognormvariate(5.5, 0.4)
        ended = began + wall
        free[slot] = ended + 0.3
        busy += wall
        outcome = "done" if not fault else "given_back" if fault is MACHINE else "failed"
        counts["succeeded" if not fault else outcome] += 1
        yield line(
            "task", task_id=str(uuid.UUID(int=random.getrandbits(128))), slot=slot + 1,
            earlier_deliveries=int(random.random() < 0.03), received_unix_secs=round(began - 0.1, 3),
            started_unix_secs=round(began, 3), ended_unix_secs=round(ended, 3),
            published_unix_secs=None if fault else round(ended + 0.1, 3), settled_unix_secs=round(ended + 0.2, 3),
            wall_time_secs=round(wall, 3), container_time_secs=round(wall - 0.3, 3),
            cpu_user_secs=round(wall * 0.8, 2), cpu_system_secs=round(wall * 0.05, 2),
            max_rss_bytes=int(random.lognormvariate(0, 0.25) * 900) * MIB, container_memory_bytes=None,
            input_bytes=812, output_bytes=None if fault else 2210, disk_bytes=random.randrange(5, 400) * MIB,
            exit_code=0 if not fault else 1, exit_signal=None, outcome=outcome,
            fault_class=fault and fault[0], error_name=fault and fault[1], error=fault and fault[2],
        )
    if index % 40 == 39:
        return
    outages = int(random.random() < 0.05)
    closed = min(free)
    end = max(free) + 1
    yield line(
        "pilot_end", started_unix_secs=start, ended_unix_secs=round(end, 3), init_time_secs=15.5,
        connected_unix_secs=round(connected, 3), first_event_unix_secs=round(first, 3),
        first_event_wait_secs=round(first - connected, 3), intake_closed_unix_secs=round(closed, 3), slots=slots,
        busy_secs=round(busy, 3), broker_outages=outages, broker_outage_secs=outages * 42.0, received=tasks,
        started=tasks, dead_lettered=0, rejected=0, published=counts["succeeded"], no_output=0,
        duplicates=int(random.random() < 0.1), exit_code=1 if counts["failed"] else 0, error=None, **counts,
    )


def main():
    tasks = int(sys.argv[1])
    pilots = int(sys.argv[2]) if len(sys.argv) > 2 else max(1, tasks // 500)
    sites = int(sys.argv[4]) if len(sys.argv) > 4 else 12
    source = random.Random(20261123)
    for index in range(pilots):
        share = tasks * (index + 1) // pilots - tasks * index // pilots
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in pilot(index, share, source, sites))
        if len(sys.argv) > 3:
            with open(f"{sys.argv[3]}/pilot-{index:05}.jsonl", "w", encoding="utf-8") as file:
                file.write(text)
        else:
            sys.stdout.write(text)


if __name__ == "__main__":
    main()

"""A small submitting service: it makes jobs of pilots and reads what they chirp, as the real one does.

usage: service.py submit LOG IMAGE     in the directory to submit from; stdin is the pilots' environment, JSON
                                       whose lists are arrays; submits two pilots, prints their cluster
       service.py watch LOG SECONDS    stdin is a JSON list of [CLUSTER, FIELD, VALUE]: waits until that is so of
                                       both pilots of each cluster; prints what all clusters add up to
"""

import collections
import json
import pathlib
import shlex
import subprocess
import sys
import time
import warnings

warnings.simplefilter("ignore")
import classad2 as classad
import htcondor2 as htcondor

PILOTS = 2
ENV_FILE = "ewms_htcondor_envfile.sh"
STATUS, ERROR = "HTChirpEWMSPilotStatus", "HTChirpEWMSPilotError"
LEFT = ("JOB_TERMINATED", "JOB_ABORTED", "JOB_HELD")


def submit(log, image):
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in sorted(json.load(sys.stdin).items())]
    pathlib.Path(ENV_FILE).write_text("\n".join(["set -x", *exports, "set +x", ""]))
    job = {
        "universe": "container",
        "container_image": image,
        "transfer_container": "false",
        "arguments": "",
        "transfer_input_files": ENV_FILE,
        "transfer_output_files": '""',
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT_OR_EVICT",
        "output": "$(ProcId).out",
        "error": "$(ProcId).err",
        "log": log,
        "request_cpus": "1",
        "request_memory": "512MB",
        "request_disk": "100MB",
        "requirements": 'TARGET.Machine == "localhost" && TARGET.HasUserNamespaces =?= true',
        "+WantIOProxy": "true",
        "+OriginalTime": "3600",
    }
    lines = [f"{name} = {value}" for name, value in job.items()]
    pathlib.Path("job.sub").write_text("\n".join([*lines, f"queue {PILOTS}", ""]))
    said = subprocess.run(["condor_submit", "-terse", "job.sub"], check=True, stdout=subprocess.PIPE, text=True)
    # `FIRST.PROC - LAST.PROC`
    print(said.stdout.partition(".")[0])


def note(job, event):
    """Keeps the last status of a job, and its last error for good."""
    name = event.type.name
    job["left"] = job["left"] or name in LEFT
    job["evictions"] += name == "JOB_EVICTED"
    attribute, _, value = event.get("Info", "").partition(": ")
    if name == "GENERIC" and attribute in (STATUS, ERROR):
        job[attribute] = classad.unquote(value)


def watch(log, seconds):
    wanted = json.load(sys.stdin)
    deadline = time.monotonic() + int(seconds)
    clusters = collections.defaultdict(
        lambda: collections.defaultdict(lambda: {"left": False, "evictions": 0, STATUS: None, ERROR: None})
    )

    def is_so(cluster, field, value):
        return sum(job[field] == value for job in clusters[cluster].values()) == PILOTS

    with htcondor.JobEventLog(log) as events:
        while not all(is_so(*condition) for condition in wanted):
            for event in events.events(stop_after=1):
                note(clusters[str(event.cluster)][event.proc], event)
            if time.monotonic() > deadline:
                missing = [condition for condition in wanted if not is_so(*condition)]
                sys.exit(f"not so after {seconds} s: {missing}; {json.dumps(clusters, indent=1)}")
    print(json.dumps({cluster: add_up(jobs.values()) for cluster, jobs in clusters.items()}))


def add_up(jobs):
    errors = collections.Counter(job[ERROR] for job in jobs if job[ERROR] is not None)
    return {"statuses": collections.Counter(job[STATUS] for job in jobs), "errors": errors.most_common(10)}


if __name__ == "__main__":
    {"submit": submit, "watch": watch}[sys.argv[1]](*sys.argv[2:])

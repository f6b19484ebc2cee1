"""What HTCondor's own Python package says, by the names that all its versions have.

usage: condor.py events LOG   print each event of a job event log as one line of JSON
       condor.py quote        stdin is a JSON list of strings: print the list of their ClassAd literals
       condor.py unquote      the other way round
       condor.py submit NAME N  stdin is a submit description, N times for the module NAME: print the cluster, if there is such one
       condor.py matches      stdin is a JSON list of a job's ad, as text, and of machine ads: print which match
"""

import importlib
import json
import sys

import classad2 as classad
import htcondor2 as htcondor

verb = sys.argv[1]
if verb == "events":
    with htcondor.JobEventLog(sys.argv[2]) as log:
        for event in log.events(stop_after=0):
            shown = {name: event[name] for name in event.keys()}
            shown.update(type=event.type.name, proc=event.proc)
            print(json.dumps(shown, default=str))
elif verb == "quote":
    print(json.dumps([classad.quote(text) for text in json.load(sys.stdin)]))
elif verb == "unquote":
    print(json.dumps([classad.unquote(text) for text in json.load(sys.stdin)]))
elif verb == "submit":
    try:
        module = importlib.import_module(sys.argv[2])
    except ImportError:
        sys.exit()
    description = module.Submit(sys.stdin.read())
    print(module.Schedd().submit(description, count=int(sys.argv[3])).cluster())
elif verb == "matches":
    text, machines = json.load(sys.stdin)
    # classad2 of HTCondor 23.9 refuses this text as condor_submit prints it, one attribute a line.
    lines = [line for line in text.splitlines() if line]
    job = classad.ClassAd(f"[{';'.join(lines)}]")
    machines = [classad.ClassAd({"Requirements": True, **machine}) for machine in machines]
    print(json.dumps([job.symmetricMatch(machine) for machine in machines]))
else:
    sys.exit(__doc__)

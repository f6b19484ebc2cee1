"""The task of the demo: the likelihood of one pixel of the sky.

Usage: pixel.py INFILE OUTFILE STARTUP_FILE
"""

import json
import sys

import sky


def main():
    infile, outfile, startup = sys.argv[1:]
    with open(infile) as f:
        event = json.load(f)
    with open(startup) as f:
        start = json.load(f)
    direction = sky.centre(event["pixel"])
    llh = sky.log_likelihood(direction, start["photons"], start["spread"])
    with open(outfile, "w") as f:
        json.dump({"pixel": event["pixel"], "direction": direction, "llh": llh}, f)


main()

"""The init container of the demo: writes the start-up file that every pixel's task reads.

A real scan downloads its start-up file here; this one makes up an event with a fixed seed.
Usage: startup.py OUTFILE
"""

import json
import math
import random
import sys

TRUE_PIXEL_DIRECTION = (-0.63, 0.51, 0.585)  # somewhere in the north


def main():
    rng = random.Random(20230922)
    photons = []
    for _ in range(400):
        wobbled = [x + rng.gauss(0, 0.35) for x in TRUE_PIXEL_DIRECTION]
        length = math.sqrt(sum(x * x for x in wobbled))
        photons.append({"direction": [x / length for x in wobbled], "charge": rng.expovariate(1.0)})
    with open(sys.argv[1], "w") as f:
        json.dump({"run": 138125, "spread": 0.35, "photons": photons}, f)
    print(f"wrote {len(photons)} photons")


main()

"""The end of the demo: collects the results, prints the best pixel and a map of the sky.

Usage: map.py RESULTS_DIRECTORY
"""

import json
import math
import pathlib
import sys

import sky

SHADES = " .:-=+*#%@"
WIDTH, HEIGHT = 64, 17  # characters; about 2:1 on a terminal


def angles(direction):
    x, y, z = direction
    return math.degrees(math.atan2(y, x)) % 360, math.degrees(math.asin(z))


def sky_at(column, row):
    """The direction at a place of a Mollweide map, None outside of it (right ascension grows leftwards)."""
    x = 2 * (column + 0.5) / WIDTH - 1
    y = 1 - 2 * (row + 0.5) / HEIGHT
    if x * x + y * y > 1:
        return None
    theta = math.asin(y)
    dec = math.asin(max(-1, min(1, (2 * theta + math.sin(2 * theta)) / math.pi)))
    ra = -math.pi * x / max(math.cos(theta), 1e-9) + math.pi
    return (math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec))


def main():
    results = [json.loads(p.read_text()) for p in pathlib.Path(sys.argv[1]).glob("*.json")]
    by_pixel = {r["pixel"]: r for r in results}
    missing = sorted(set(range(sky.PIXELS)) - set(by_pixel))
    if missing or len(results) != sky.PIXELS:
        sys.exit(f"{len(results)} results for {sky.PIXELS} pixels; missing: {missing}")

    centres = {pixel: sky.centre(pixel) for pixel in by_pixel}
    order = sorted(by_pixel, key=lambda pixel: by_pixel[pixel]["llh"])
    shade = {pixel: SHADES[i * len(SHADES) // len(order)] for i, pixel in enumerate(order)}
    best = order[-1]
    print(f"\n  {len(results)} of {sky.PIXELS} pixels scanned, the map by rank of likelihood:\n")
    for row in range(HEIGHT):
        line = ""
        for column in range(WIDTH):
            direction = sky_at(column, row)
            if direction is None:
                line += " "
            else:
                line += shade[max(centres, key=lambda p: sky.dot(centres[p], direction))]
        print("  " + line)
    ra, dec = angles(centres[best])
    print(f"\n  best pixel: {best}  (right ascension {ra:.1f}, declination {dec:+.1f} degrees),")
    print(f"  log-likelihood {by_pixel[best]['llh']:.1f}, next best {by_pixel[order[-2]]['llh']:.1f}\n")


main()

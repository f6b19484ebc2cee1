"""The sky of the demo: 48 equal pixels (HEALPix, ring scheme, nside 2) and a toy neutrino event.

Standard library only, so that any image with Python can run it.
"""

import math

NSIDE = 2
PIXELS = 12 * NSIDE * NSIDE


def centre(pixel):
    """The centre of a pixel as a unit vector (Gorski et al. 2005, equations 4 to 9)."""
    cap = 2 * NSIDE * (NSIDE - 1)
    if pixel < cap:  # north cap
        ring = int((1 + math.isqrt(1 + 2 * pixel)) / 2)
        step = pixel - 2 * ring * (ring - 1)
        z = 1 - ring**2 / (3 * NSIDE**2)
        phi = math.pi / (2 * ring) * (step + 0.5)
    elif pixel < PIXELS - cap:  # belt
        ring, step = divmod(pixel - cap, 4 * NSIDE)
        ring += NSIDE
        z = (2 * NSIDE - ring) * 2 / (3 * NSIDE)
        shift = 0.5 if (ring - NSIDE) % 2 == 0 else 0.0
        phi = math.pi / (2 * NSIDE) * (step + shift)
    else:  # south cap, the north one upside down
        x, y, z = centre(PIXELS - 1 - pixel)
        return (x, -y, -z)
    side = math.sqrt(1 - z * z)
    return (side * math.cos(phi), side * math.sin(phi), z)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def log_likelihood(direction, photons, spread):
    """How well a direction explains the photons, each seen `spread` radians around it."""
    return sum((dot(direction, p["direction"]) - 1) * p["charge"] for p in photons) / spread**2

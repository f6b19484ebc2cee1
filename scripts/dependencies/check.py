"""Holds all dependencies to the accepted licences and to one source.

usage: cargo metadata … | check.py ABOUT.TOML

Reads what cargo says of the packages, so it needs no network and no tool but cargo. A package's licence is an
expression of SPDX; it is accepted if a choice among its OR parts is. Exits with 1 and a line for each package
that isn't.
"""

import json
import re
import sys
import tomllib

# The public registry, as Cargo.lock names it; every package of it has a checksum there.
SOURCE = re.compile(r"registry\+.*/crates\.io-index")


def is_accepted(expression, accepted):
    """Whether the licence can be kept with accepted ones alone."""
    words = re.findall(r"[()/]|[^\s()/]+", expression)

    def either():
        result = both()
        while words and words[0] in ("OR", "/"):
            words.pop(0)
            result = both() or result
        return result

    def both():
        result = one()
        while words and words[0] == "AND":
            words.pop(0)
            result = one() and result
        return result

    def one():
        word = words.pop(0) if words else ""
        if word == "(":
            result = either()
            if words:
                words.pop(0)
            return result
        if words and words[0] == "WITH":
            word = f"{word} WITH {words[1]}"
            del words[:2]
        return word in accepted

    return either() and not words


def complaints(packages, accepted):
    for package in packages:
        name = f"{package['name']} {package['version']}"
        source, licence = package["source"], package["license"]
        # Without a source it is this project.
        if source and not SOURCE.fullmatch(source):
            yield f"{name} comes from `{source}`; take it from the registry, or copy it into src/"
        if not licence:
            yield f"{name} states no licence; use another package"
        elif not is_accepted(licence, accepted):
            yield f"{name} has the licence `{licence}`; use another package, or accept it in scripts/dependencies/about.toml"


def main():
    with open(sys.argv[1], "rb") as file:
        accepted = set(tomllib.load(file)["accepted"])
    packages = json.load(sys.stdin)["packages"]
    found = list(complaints(packages, accepted))
    for complaint in found:
        print(f"check: {complaint}", file=sys.stderr)
    print(f"check: {len(packages)} packages, {len(found)} complaints")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

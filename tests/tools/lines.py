#!/usr/bin/env python3
"""Counts lines of Rust code, by room, for what serves requests and for the lab.

A line counts where it is code: no blank line, no comment, and nothing that only a test build sees (an item behind
`#[cfg(test)]`, a file `tests.rs`, a folder `tests/`).

    tests/tools/lines.py            the working tree
    tests/tools/lines.py --rev REV  a commit
"""

import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Rooms that were the lab's before it was a crate of its own.
LAB = {"engine", "simulate", "demo"}

# A line comment; a block comment (none of ours is nested); a literal, which may hold what looks like either.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'""", re.S
)


def without_comments(source):
    """The source with blanks for comments, and literals without brackets, so that brackets can be counted."""

    def replace(match):
        text = match.group()
        if text.startswith(("//", "/*")):
            return "\n" * text.count("\n")
        return re.sub(r"[^\s]", "_", text)

    return TOKEN.sub(replace, source)


def code_lines(source):
    """How many lines of the source are code outside of tests."""
    count, depth, skipping = 0, 0, None
    for line in without_comments(source).splitlines():
        line = line.strip()
        if not line:
            continue
        if skipping is None and line.startswith("#[cfg(test)]"):
            skipping, line = depth, line.removeprefix("#[cfg(test)]").strip()
            attribute_only = not line
        else:
            attribute_only = skipping is not None and line.startswith("#[")
        if skipping is None:
            count += 1
        depth += sum(line.count(c) for c in "([{") - sum(line.count(c) for c in ")]}")
        # The item behind the attribute ends with its last bracket, or with `;` or `,`.
        if skipping == depth and not attribute_only and line and line[-1] in "};,":
            skipping = None
    return count


def files(rev):
    """Every Rust file below a `src` folder, by path, with its text."""
    if rev:
        git = ["git", "-C", str(ROOT)]
        names = subprocess.run([*git, "ls-tree", "-r", "--name-only", rev], capture_output=True, text=True, check=True)
        read = lambda name: subprocess.run([*git, "show", f"{rev}:{name}"], capture_output=True, text=True, check=True).stdout
        names = names.stdout.splitlines()
    else:
        names = [str(path.relative_to(ROOT)) for top in ("src", "crates") for path in (ROOT / top).rglob("*.rs")]
        read = lambda name: (ROOT / name).read_text()
    for name in sorted(names):
        parts = pathlib.PurePath(name).parts
        ours = parts[0] == "src" or (parts[0] == "crates" and len(parts) > 3 and parts[2] == "src")
        if name.endswith(".rs") and ours and not {"tests", "tests.rs"} & set(parts):
            yield parts, read(name)


def room(parts):
    """(crate, room): the first folder or file below `src`."""
    crate = parts[1] if parts[0] == "crates" else "thundergate"
    inside = parts[parts.index("src") + 1 :]
    return crate, inside[0].removesuffix(".rs")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rev", help="a commit, instead of the working tree")
    rooms = {}
    for parts, source in files(arguments.parse_args().rev):
        entry = rooms.setdefault(room(parts), [0, 0])
        entry[0] += 1
        entry[1] += code_lines(source)
    if not rooms:
        sys.exit("no Rust file below src")
    lab = {key for key in rooms if key[0] == "lab" or (key[0] == "thundergate" and key[1] in LAB)}
    serving = rooms.keys() - lab
    print(f"{'crate':<12} {'room':<14} {'files':>5} {'lines':>7}")
    for (crate, name), (number, lines) in sorted(rooms.items(), key=lambda item: (item[0][0], -item[1][1])):
        print(f"{crate:<12} {name:<14} {number:>5} {lines:>7,}")
    print()
    for crate in sorted({crate for crate, _ in rooms}):
        print(f"crate {crate:<21} {total(rooms, [key for key in rooms if key[0] == crate]):>14,}")
    print(f"{'serves requests':<27} {total(rooms, serving):>14,}")
    print(f"{'lab':<27} {total(rooms, lab):>14,}")
    print(f"{'in all':<27} {total(rooms, rooms):>14,}")


def total(rooms, keys):
    return sum(rooms[key][1] for key in keys)


if __name__ == "__main__":
    main()

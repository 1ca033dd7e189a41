#!/usr/bin/env python
"""Do a wheel and an sdist hold what the repository holds, and nothing else?

The wheel: each file of defectseg/, and configs/ as defectseg/configs/. The sdist: each file that pyproject.toml lists
for it. Prints what is missing and what is too much, and exits with 1 if there is any.
Usage: python scripts/distribution.py WHEEL SDIST
"""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDED = {"PKG-INFO", "pyproject.toml", ".gitignore"}  # by the build, to any sdist
NEEDED = {"defectseg/py.typed", "defectseg/evaluate/report.html.j2", "defectseg/configs/severstal.yaml"}


def tracked(*paths: str) -> set[str]:
    """Files of the repository below some paths."""
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\0")) - {""}


def differences(name: str, found: set[str], expected: set[str]) -> list[str]:
    missing = [f"{name}: {path} is missing" for path in sorted(expected - found)]
    return missing + [f"{name}: {path} is too much" for path in sorted(found - expected)]


def check(wheel: Path, sdist: Path) -> list[str]:
    """What is wrong, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = tracked("defectseg") | {f"defectseg/{name}" for name in tracked("configs")}
    with tarfile.open(sdist) as archive:
        unpacked = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    listed = tracked(*build["targets"]["sdist"]["include"]) | ADDED
    return differences("wheel", packed, wanted | NEEDED) + differences("sdist", unpacked, listed)


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] == "--help":
        print("usage: python scripts/distribution.py WHEEL SDIST")
        sys.exit("--help" not in sys.argv and 2)
    faults = check(Path(sys.argv[1]), Path(sys.argv[2]))
    print(*faults or ["wheel and sdist hold what the repository holds"], sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

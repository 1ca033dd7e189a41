#!/usr/bin/env python
"""Has any package that pip would install for defectseg a known vulnerability?

Looks up each package of a report of `pip install --dry-run --report REPORT` with pip-audit. It ends with 1 if there is
a vulnerability, and with 77 if not all packages could be looked up. pip-audit itself ends with 0 then. The last line
that is printed says which. Usage: python scripts/audit.py REPORT
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NOT_RUN = 77


def look_up(pinned: list[str]) -> list[dict[str, Any]]:
    """For each package, such as numpy==2.1, an entry with its `vulns` or the `skip_reason`; none if all failed."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, found = Path(folder, "wanted.txt"), Path(folder, "found.json")
        wanted.write_text("\n".join(pinned), encoding="utf-8")
        told = ("--format", "json", "--output", str(found), "--progress-spinner", "off", "--timeout", "30")
        command = (sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--requirement", str(wanted), *told)
        subprocess.run(command, check=False)
        entries: list[dict[str, Any]] = json.loads(found.read_bytes())["dependencies"] if found.is_file() else []
        return entries


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] == "--help":
        print("usage: python scripts/audit.py REPORT")
        sys.exit("--help" not in sys.argv and 2)
    report = json.loads(Path(sys.argv[1]).read_bytes())
    installed = [one["metadata"] for one in report["install"]]
    pinned = [f"{one['name']}=={one['version']}" for one in installed if one["name"] != "defectseg"]
    entries = look_up(pinned)
    vulnerable = [one for one in entries if one.get("vulns")]
    missing = len(pinned) - sum("vulns" in one for one in entries)
    for one in vulnerable:
        print(one["name"], one["version"], *(vulnerability["id"] for vulnerability in one["vulns"]))
    if vulnerable:
        print(f"{len(vulnerable)} of {len(pinned)} packages have a known vulnerability")
    elif missing:
        print(f"pip-audit did not reach its data for {missing} of {len(pinned)} packages")
    else:
        print(f"no known vulnerability in {len(pinned)} packages")
    sys.exit(1 if vulnerable else NOT_RUN if missing else 0)


if __name__ == "__main__":
    main()

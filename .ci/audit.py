"""Ask PyPI's database of vulnerabilities about every version in requirements.lock: one known vulnerability fails.

Where the database cannot be asked, one line says so and nothing fails: `make lint` works without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCK = "requirements.lock"
ACCEPTED: dict[str, str] = {}  # id of a vulnerability -> why it does not concern this project


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        options = ["--requirement", LOCK, "--no-deps", "--disable-pip", "--timeout", "5", "--progress-spinner", "off"]
        command = [sys.executable, "-m", "pip_audit", *options, "--format", "json", "--output", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - pip-audit itself
        if not path.is_file():  # its exit code is the same for a vulnerability and for a missing network
            reason = (done.stderr.strip().splitlines() or ["no report"])[-1][:160]
            print(f"{LOCK}: not audited ({reason})")
            return 0
        line, num_found = judge(json.loads(path.read_text("utf-8"))["dependencies"])
    print(line)
    return 1 if num_found else 0


def judge(dependencies: list[dict[str, Any]]) -> tuple[str, int]:
    """Return the text about pip-audit's report, and the number of vulnerabilities that are not accepted."""
    skipped = [part["name"] for part in dependencies if "skip_reason" in part]
    if len(skipped) == len(dependencies):
        return f"{LOCK}: not audited (the database of vulnerabilities knows none of its packages: no PyPI)", 0
    found = [
        f"  {part['name']} {part['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'none'}"
        for part in dependencies
        for known in part.get("vulns", [])
        if not {known["id"], *known.get("aliases", [])} & ACCEPTED.keys()
    ]
    unknown = f"; unknown to the database: {', '.join(skipped)}" if skipped else ""
    line = f"{LOCK}: {len(found)} known vulnerabilities in {len(dependencies)} packages{unknown}"
    return "\n".join([line, *found]), len(found)


if __name__ == "__main__":
    sys.exit(main())

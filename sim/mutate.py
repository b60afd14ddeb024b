"""Planted mistakes: the simulation must find each of them.

``mutations/NAME.patch`` reinstates a classic mistake in the product. It is applied to a copy of the sources, never to
the sources themselves, and the simulation is run against that copy until a seed fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
NAMES = sorted(path.stem for path in (HERE / "mutations").glob("*.patch"))


@dataclass(frozen=True)
class Found:
    """`seeds`: how many were run until one failed, or in all when none did. `failure`: None when none did."""

    name: str
    seeds: int
    failure: str | None


def hunt(name: str, seeds: int, start: int = 0, jobs: int = 2) -> Found:
    """Run the simulation with the mistake `name` for at most `seeds` seeds. Raises `ValueError` if the patch does not
    apply any more."""
    with tempfile.TemporaryDirectory(prefix="sim-mutation-") as directory:
        copy = Path(directory)
        for part in ("src", "sim"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        patch = HERE / "mutations" / f"{name}.patch"
        applied = subprocess.run(["git", "apply", str(patch)], cwd=copy, capture_output=True, text=True)
        if applied.returncode != 0:
            raise ValueError(f"{patch.name} no longer applies: {applied.stderr}")
        environment = {**os.environ, "PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"}
        command = [sys.executable, "-m", "sim", "persist", "--seeds", str(seeds), "--start", str(start)]
        command += ["--jobs", str(jobs), "--stop-after", "1"]
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    result = json.loads(lines[-1]) if lines else {}
    if "failing_seeds" not in result:
        raise RuntimeError(f"the simulation with {name} broke down:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    failure = next((line for line in lines if " FAILED: " in line), None)
    return Found(name, result["seeds"], failure)


def hunt_all(names: list[str], seeds: int, jobs: int) -> int:
    """Hunt each of `names`, report, and end with the JSON line; returns the exit status."""
    found: dict[str, int | None] = {}
    for name in names:
        started = time.monotonic()
        one = hunt(name, seeds, jobs=jobs)
        found[name] = one.seeds if one.failure is not None else None
        elapsed = time.monotonic() - started
        if one.failure is None:
            print(f"{name}: NOT FOUND in {one.seeds} seeds ({elapsed:.0f} s)", flush=True)
        else:
            print(f"{name}: found within {one.seeds} seeds ({elapsed:.0f} s): {one.failure[:300]}", flush=True)
    missed = [name for name, count in found.items() if count is None]
    line = {"sim": "mutations", "seeds": seeds, "failures": len(missed), "missed": missed, "found_within_seeds": found}
    print(json.dumps(line), flush=True)
    return 1 if missed else 0

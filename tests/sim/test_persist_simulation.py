"""The simulation of persist finds nothing, and a seed is the same run wherever it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sim.persist import Run
from sim.runner import run_seed

ROOT = Path(__file__).parent.parent.parent


def simulate(*arguments: str, hash_seed: str = "0") -> tuple[int, dict[str, object]]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "sim", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_some_seeds() -> None:
    for seed in range(1_000, 1_016):
        outcome = run_seed(Run, seed)
        assert outcome.failure is None, "\n".join([*outcome.tail, f"seed {seed}: {outcome.failure}"])


def test_a_seed_is_the_same_run_under_another_hash_seed() -> None:
    one = simulate("persist", "--seeds", "4", "--start", "2000", "--jobs", "1", hash_seed="1")
    two = simulate("persist", "--seeds", "4", "--start", "2000", "--jobs", "1", hash_seed="2")
    assert one == two
    assert one[0] == 0
    assert one[1]["seeds"] == 4
    assert one[1]["digest"] != simulate("persist", "--seeds", "4", "--start", "2004", "--jobs", "1")[1]["digest"]

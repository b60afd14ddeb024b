"""A run that executes fewer tests than the checked-in floor fails, also when a filter matches nothing at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = Path(__file__).parent.parent


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(SUITE / "conftest.py", folder)
    (folder / "floor.txt").write_text("2\n")
    (folder / "test_two.py").write_text("def test_a(): pass\n\ndef test_b(): pass\n")
    environment = {**os.environ, "PENSTOCK_TEST_FLOOR": "1"}
    for leaked in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[leaked]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder)]
    return subprocess.run([*command, *arguments, str(folder)], env=environment, capture_output=True, text=True)


def test_enough_tests_pass(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0


def test_a_filter_that_matches_some_fails(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "test_b")
    assert done.returncode == 1
    assert "only 1 tests passed where 2 must" in done.stdout


def test_a_filter_that_matches_nothing_fails(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "no_such_test")
    assert done.returncode == 1
    assert "only 0 tests passed where 2 must" in done.stdout

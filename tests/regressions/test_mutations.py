"""Every regression test turns red when its mistake comes back.

Beside each test lies a patch that reinstates the mistake: ``mutations/NAME.patch`` belongs to ``test_NAME.py``. The
patch is applied to a copy of the sources, never to the sources themselves, and the test is run against that copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TESTS = sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py") if path.stem != "test_mutations")


@pytest.mark.parametrize("name", TESTS)
def test_the_mutation_turns_the_test_red(name: str, tmp_path: Path) -> None:
    patch = HERE / "mutations" / f"{name}.patch"
    assert patch.exists(), f"test_{name}.py has no mutation: a test that cannot fail shows nothing"
    for part in ("src", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    applied = subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, capture_output=True, text=True)
    assert applied.returncode == 0, f"{patch.name} no longer applies: {applied.stderr}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PENSTOCK_"))}
    environment["PYTHONPATH"] = str(tmp_path / "src")
    test = tmp_path / "tests" / "regressions" / f"test_{name}.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-x", str(test)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, f"with the mistake back, pytest ended with {run.returncode}:\n{run.stdout[-3000:]}"
    assert "failed" in run.stdout

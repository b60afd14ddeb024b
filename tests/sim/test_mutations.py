"""Planted mistakes are found. All of them are hunted by ``python -m sim mutations``; here are the quickest."""

from __future__ import annotations

import subprocess

import pytest

from sim.mutate import HERE, NAMES, ROOT, hunt


def test_every_patch_still_applies() -> None:
    assert len(NAMES) >= 10
    for name in NAMES:
        patch = HERE / "mutations" / f"{name}.patch"
        done = subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("name", ["apply_before_commit", "collection_ignores_holds"])
def test_a_planted_mistake_is_found(name: str) -> None:
    assert hunt(name, seeds=9, jobs=1).failure is not None

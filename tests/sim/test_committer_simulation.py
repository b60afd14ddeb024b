"""The simulation of persist with committers in the middle finds nothing, and reaches what is rare."""

from __future__ import annotations

from collections import Counter

from sim.committer import Run
from sim.runner import run_seed

OFTEN = ("several changes in one batch", "refused behind the cache", "cached head was behind")


def test_some_seeds() -> None:
    sometimes: Counter[str] = Counter()
    for seed in range(3_000, 3_006):
        outcome = run_seed(Run, seed)
        assert outcome.failure is None, "\n".join([*outcome.tail, f"seed {seed}: {outcome.failure}"])
        sometimes.update(outcome.sometimes)
    for path in OFTEN:
        assert sometimes[path] > 0, f"never: {path}"


def test_a_seed_is_the_same_run_again() -> None:
    assert run_seed(Run, 7).digest == run_seed(Run, 7).digest

"""What the command line says of many seeds."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from sim.endless import Endless, Sample, problems
from sim.runner import SOMETIMES_FROM_SEEDS, Outcome, report, run_seed
from sim.world import World


def outcome(seed: int, failure: str | None = None, **sometimes: int) -> Outcome:
    return Outcome(seed, f"{seed:x}", failure, ("a line",) if failure else (), Counter(sometimes))


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, object]]:
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


def test_success(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [outcome(n, rare=1) for n in range(SOMETIMES_FROM_SEEDS)]
    assert report("persist", outcomes, len(outcomes), ["rare"]) == 0
    _, line = said(capsys)
    assert (line["seeds"], line["failures"], line["sometimes"]) == (len(outcomes), 0, {"rare": len(outcomes)})


def test_a_failure_comes_with_its_trace_and_how_to_replay_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("persist", [outcome(1), outcome(7, "it broke"), outcome(8)], 3, []) == 1
    text, line = said(capsys)
    assert "a line\nseed 7 FAILED: it broke" in text
    assert "python -m sim persist --seeds 1 --start 7 --trace" in text
    assert (line["seeds"], line["failing_seeds"]) == (3, [7])


def test_a_rare_path_that_is_never_reached_is_a_failure_of_many_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("persist", [outcome(1)], 1, ["rare"]) == 0
    assert report("persist", [outcome(n) for n in range(SOMETIMES_FROM_SEEDS)], SOMETIMES_FROM_SEEDS, ["rare"]) == 1
    assert said(capsys)[1]["sometimes"] == {"rare": 0}


def test_enough_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("persist", (outcome(n, "it broke") for n in range(99)), 99, [], stop_after=2) == 1
    assert said(capsys)[1]["failing_seeds"] == [0, 1]


class Broken:
    """A run in which a checker speaks up."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)

    def run(self) -> Counter[str]:
        async def main() -> None:
            self.world.violated("the sky is down")

        self.world.run(main)
        return self.world.sometimes


def test_a_violation_ends_its_seed() -> None:
    one = run_seed(Broken, 3)
    assert one.failure == "Violation: the sky is down"
    assert "CHECKER    the sky is down" in one.tail[-1]


def test_ten_minutes_of_endless_appends() -> None:
    run = Endless(0, 600.0)
    run.run()
    assert run.appends > 1000
    assert max(sample.live_versions for sample in run.samples) < 4 * 128
    assert max(sample.blobs for sample in run.samples) < 10
    assert max(sample.state_bytes for sample in run.samples) < 2**20


def test_growth_is_noticed() -> None:
    flat = [Sample(100 + n % 7, 5, 3, 1000, 500) for n in range(60)]
    assert problems(flat) == []
    growing = [Sample(100 + n, 5, 3, 1000, 500) for n in range(60)]
    assert "live_versions grows" in problems(growing)[0]

"""Many seeds: run in processes, counted, reported."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

from sim.world import World

SEEDS_AT_A_TIME = 10
TAIL_LINES = 60
SOMETIMES_FROM_SEEDS = 200
"""With at least so many seeds, each rare path must have been reached."""


class Runnable(Protocol):
    """One seed of a simulation."""

    world: World

    def run(self) -> Counter[str]: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one seed. `failure` None: nothing was wrong."""

    seed: int
    digest: str
    failure: str | None
    tail: tuple[str, ...]
    sometimes: Counter[str]


def run_seed(make: Callable[[int], Runnable], seed: int) -> Outcome:
    """Run one seed; every exception is a failure of it."""
    run = make(seed)
    failure = None
    try:
        run.run()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError) or not str(error):
            failure += "\n" + "".join(traceback.format_exception(error)[-6:])
    tail = tuple(run.world.trace.lines)[-TAIL_LINES:] if failure else ()
    return Outcome(seed, run.world.trace.digest(), failure, tail, run.world.sometimes)


def _run_seeds(make: Callable[[int], Runnable], seeds: Sequence[int]) -> list[Outcome]:
    return [run_seed(make, seed) for seed in seeds]


def run_seeds(make: Callable[[int], Runnable], seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Outcomes in the order of `seeds`, from `jobs` processes."""
    if jobs <= 1 or len(seeds) <= SEEDS_AT_A_TIME:
        for seed in seeds:
            yield run_seed(make, seed)
        return
    chunks = [seeds[start : start + SEEDS_AT_A_TIME] for start in range(0, len(seeds), SEEDS_AT_A_TIME)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
        try:
            for outcomes in processes.map(_run_seeds, [make] * len(chunks), chunks):
                yield from outcomes
        finally:
            processes.shutdown(cancel_futures=True)


def report(name: str, outcomes: Iterable[Outcome], count: int, paths: Iterable[str], *, stop_after: int = 20) -> int:
    """Print failures as they come and the JSON line at the end; returns the exit status."""
    started = time.monotonic()
    sometimes: Counter[str] = Counter(dict.fromkeys(paths, 0))
    failing: list[int] = []
    digest = hashlib.blake2b(digest_size=16)
    done = 0
    for outcome in outcomes:
        done += 1
        digest.update(outcome.digest.encode())
        sometimes.update(outcome.sometimes)
        if outcome.failure is not None:
            failing.append(outcome.seed)
            print("\n".join(outcome.tail))
            print(f"seed {outcome.seed} FAILED: {outcome.failure}")
            print(f"replay: python -m sim {name} --seeds 1 --start {outcome.seed} --trace\n", flush=True)
            if len(failing) >= stop_after:
                print(f"{stop_after} failures are enough")
                break
    elapsed = time.monotonic() - started
    unreached = sorted(path for path, times in sometimes.items() if times == 0)
    if unreached and count >= SOMETIMES_FROM_SEEDS:
        print(f"never reached: {', '.join(unreached)}", file=sys.stderr)
    print(f"{done} seeds in {elapsed:.0f} s, {done / max(elapsed, 1e-9):.2f} seeds/s", file=sys.stderr)
    line = {
        "sim": name,
        "seeds": done,
        "failures": len(failing),
        "failing_seeds": failing,
        "sometimes": dict(sorted(sometimes.items())),
        "digest": digest.hexdigest(),
    }
    print(json.dumps(line), flush=True)
    return 1 if failing or (unreached and count >= SOMETIMES_FROM_SEEDS) else 0

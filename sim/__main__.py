"""The command line: ``python -m sim persist --seeds N [--start S] [--jobs J] [--trace]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sim.persist import SOMETIMES, Run
from sim.runner import report, run_seeds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    persist = commands.add_parser("persist", help="shards under crashes, freezes and failing stores")
    persist.add_argument("--seeds", type=int, default=200, metavar="N", help="how many seeds (default 200)")
    persist.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (default 0)")
    persist.add_argument("--jobs", type=int, default=2, metavar="J", help="processes (default 2)")
    persist.add_argument("--trace", action="store_true", help="print the whole trace of each seed; implies --jobs 1")
    options = parser.parse_args(arguments)
    return _persist(options)


def _persist(options: argparse.Namespace) -> int:
    seeds = range(options.start, options.start + options.seeds)
    if not options.trace:
        return report("persist", run_seeds(Run, seeds, options.jobs), len(seeds), SOMETIMES)
    for seed in seeds:
        run = Run(seed, trace_lines=None)
        try:
            run.run()
        finally:
            print("\n".join(run.world.trace.lines))
    return report("persist", run_seeds(Run, seeds, 1), len(seeds), SOMETIMES)


if __name__ == "__main__":
    sys.exit(main())

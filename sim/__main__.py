"""The command line: ``python -m sim persist --seeds N [--start S] [--jobs J] [--trace]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sim.endless import HOUR_S
from sim.endless import main as endless_main
from sim.mutate import NAMES, hunt_all
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
    persist.add_argument("--stop-after", type=int, default=20, metavar="K", help="end after so many failures")
    mutations = commands.add_parser("mutations", help="whether the simulation finds planted mistakes")
    mutations.add_argument("names", nargs="*", metavar="NAME", help="which ones (default all)")
    mutations.add_argument("--seeds", type=int, default=2000, metavar="N", help="seeds for each (default 2000)")
    mutations.add_argument("--jobs", type=int, default=2, metavar="J", help="processes (default 2)")
    endless = commands.add_parser("endless-appends", help="whether what a shard keeps grows with its age")
    endless.add_argument("--start", type=int, default=0, metavar="S", help="the seed (default 0)")
    endless.add_argument("--hours", type=float, default=1.0, metavar="H", help="virtual hours (default 1)")
    options = parser.parse_args(arguments)
    if options.command == "endless-appends":
        return endless_main(options.start, options.hours * HOUR_S)
    if options.command == "mutations":
        unknown = set(options.names) - set(NAMES)
        if unknown:
            parser.error(f"no such mutation: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        return hunt_all(options.names or NAMES, options.seeds, options.jobs)
    return _persist(options)


def _persist(options: argparse.Namespace) -> int:
    seeds = range(options.start, options.start + options.seeds)
    if not options.trace:
        outcomes = run_seeds(Run, seeds, options.jobs)
        return report("persist", outcomes, len(seeds), SOMETIMES, stop_after=options.stop_after)
    for seed in seeds:
        run = Run(seed, trace_lines=None)
        try:
            run.run()
        finally:
            print("\n".join(run.world.trace.lines))
    return report("persist", run_seeds(Run, seeds, 1), len(seeds), SOMETIMES)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``python -m sim persist|committer --seeds N [--start S] [--jobs J] [--trace]``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from sim.endless import HOUR_S
from sim.endless import main as endless_main
from sim.mutate import NAMES, hunt_all
from sim.runner import report, run_seeds

WORLDS = {
    "persist": "shards under crashes, freezes and failing stores",
    "committer": "the same with committers in the middle: killed, frozen, replaced, doubled",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in WORLDS.items():
        world = commands.add_parser(name, help=what)
        world.add_argument("--seeds", type=int, default=200, metavar="N", help="how many seeds (default 200)")
        world.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (default 0)")
        world.add_argument("--jobs", type=int, default=2, metavar="J", help="processes (default 2)")
        world.add_argument("--trace", action="store_true", help="print the whole trace of each seed; implies --jobs 1")
        world.add_argument("--stop-after", type=int, default=20, metavar="K", help="end after so many failures")
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
    return _simulate(options)


def _simulate(options: argparse.Namespace) -> int:
    name = options.command
    module = importlib.import_module(f"sim.{name}")
    make, paths = module.Run, module.SOMETIMES
    seeds = range(options.start, options.start + options.seeds)
    if not options.trace:
        outcomes = run_seeds(make, seeds, options.jobs)
        return report(name, outcomes, len(seeds), paths, stop_after=options.stop_after)
    for seed in seeds:
        run = make(seed, trace_lines=None)
        try:
            run.run()
        finally:
            print("\n".join(run.world.trace.lines))
    return report(name, run_seeds(make, seeds, 1), len(seeds), paths)


if __name__ == "__main__":
    sys.exit(main())

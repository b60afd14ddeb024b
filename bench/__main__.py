"""``python -m bench NAME [--quick] [--json]``: run one benchmark and print its figures."""

from __future__ import annotations

import argparse
import importlib

from bench import logs
from bench.report import Report

BENCHMARKS = {
    "grouped": "SELECT k, count(*), sum(v) GROUP BY k over 5 million rows, then batches of 1,000 changes",
    "join": "1 million orders joined with 4 million line items, grouped by customer, then batches of 1,000 changes",
    "freshness": "INSERT to visible in a view of a view by SELECT, at 100 inserts a second",
    "committer": "compare-and-sets on PostgreSQL by 1, 8 and 64 clients, through persistd and directly",
    "persist-append": "1,000-row appends to one shard beside table formats and databases; 5 million rows in and out",
    "persist-history": "an append to a shard with 0, 1,000 and 10,000 earlier versions",
    "persist-latency": "compare_and_append to seen by a listen in another process",
    "persist-open-loop": "writers on schedule and readers that follow, all processes of their own, on one shard",
}


def main() -> None:
    logs.quiet()
    listing = "\n".join(f"  {name:18} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size: shows that it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    known, _ = parser.parse_known_args()
    benchmark = importlib.import_module(f"bench.{known.name.replace('-', '_')}")
    own = hasattr(benchmark, "add_arguments")
    if own:
        benchmark.add_arguments(parser)
    options = parser.parse_args()
    report = Report(options.name, as_json=options.json)
    if own:
        benchmark.run(report, quick=options.quick, options=options)
    else:
        benchmark.run(report, quick=options.quick)
    report.close()


if __name__ == "__main__":
    main()

"""``python -m bench NAME [--quick] [--json]``: run one benchmark and print its figures."""

from __future__ import annotations

import argparse
import importlib

from bench.report import Report

BENCHMARKS = {
    "grouped": "SELECT k, count(*), sum(v) GROUP BY k over 5 million rows, then batches of 1,000 changes",
    "join": "1 million orders joined with 4 million line items, grouped by customer, then batches of 1,000 changes",
    "freshness": "INSERT to visible in a view of a view by SELECT, at 100 inserts a second",
    "committer": "compare-and-sets on PostgreSQL by 1, 8 and 64 clients, through persistd and directly",
    "persist-append": "1,000-row appends to one shard beside table formats and databases; 5 million rows in and out",
}


def main() -> None:
    listing = "\n".join(f"  {name:15} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size: shows that it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    arguments = parser.parse_args()
    report = Report(arguments.name, as_json=arguments.json)
    importlib.import_module(f"bench.{arguments.name.replace('-', '_')}").run(report, quick=arguments.quick)
    report.close()


if __name__ == "__main__":
    main()

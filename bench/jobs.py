"""The two maintained queries that are measured everywhere, with their data and their changes.

Same data for every system, from a fixed seed. A batch is about 1,000 changes, half of them retractions of rows that are
there; every table has an ``id`` so that systems without multisets can name the row to delete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SEED = 7


@dataclass(frozen=True)
class Change:
    """What happens to one table in a batch: rows that go and rows that come (same schema as the table)."""

    table: str
    deleted: pa.Table
    inserted: pa.Table


@dataclass(frozen=True)
class Job:
    """`tables`: initial contents; `query`: the maintained query, in SQL that DuckDB and Penstock both read."""

    name: str
    tables: dict[str, pa.Table]
    ddl: dict[str, str]
    query: str

    @property
    def rows(self) -> int:
        return sum(table.num_rows for table in self.tables.values())

    def batches(self, count: int) -> Iterator[list[Change]]:
        """`count` batches; each row of the initial contents is retracted at most once."""
        rng = np.random.default_rng(SEED + 1)
        shares = {"grouped": {"t": 500}, "join": {"orders": 125, "lineitem": 375}}[self.name]
        victims = {name: rng.permutation(self.tables[name].num_rows)[: count * n] for name, n in shares.items()}
        for number in range(count):
            changes = []
            for name, n in shares.items():
                gone = self.tables[name].take(pa.array(np.sort(victims[name][number * n : (number + 1) * n])))
                first_id = self.tables[name].num_rows + number * n
                changes.append(Change(name, gone, self._successors(name, gone, first_id, rng)))
            yield changes

    def _successors(self, name: str, gone: pa.Table, first_id: int, rng: np.random.Generator) -> pa.Table:
        """New rows in place of `gone`: an order keeps its id and changes hands, all others are new."""
        count = gone.num_rows
        if name == "orders":
            customers = rng.integers(0, self.rows // 50, count, dtype=np.int32)
            return pa.table({"id": gone["id"], "customer": customers})
        ids = np.arange(first_id, first_id + count, dtype=np.int64)
        if name == "t":
            k = rng.integers(0, self.rows // 50, count, dtype=np.int32)
            return pa.table({"id": ids, "k": k, "v": rng.integers(0, 1_000_000, count, dtype=np.int64)})
        order_ids = rng.integers(0, self.tables["orders"].num_rows, count, dtype=np.int64)
        return pa.table({"id": ids, "order_id": order_ids, "price": rng.integers(1, 100_000, count, dtype=np.int64)})


def grouped(rows: int) -> Job:
    """Job (a): `rows` rows over rows/50 keys."""
    rng = np.random.default_rng(SEED)
    table = pa.table(
        {
            "id": np.arange(rows, dtype=np.int64),
            "k": rng.integers(0, rows // 50, rows, dtype=np.int32),
            "v": rng.integers(0, 1_000_000, rows, dtype=np.int64),
        }
    )
    return Job(
        "grouped",
        {"t": table},
        {"t": "id bigint NOT NULL, k integer NOT NULL, v bigint NOT NULL"},
        "SELECT k, count(*) AS n, sum(v) AS total FROM t GROUP BY k",
    )


def join(rows: int) -> Job:
    """Job (c): rows/5 orders of rows/50 customers, joined with 4/5 rows line items, grouped by customer."""
    rng = np.random.default_rng(SEED)
    orders, items = rows // 5, rows - rows // 5
    return Job(
        "join",
        {
            "orders": pa.table(
                {
                    "id": np.arange(orders, dtype=np.int64),
                    "customer": rng.integers(0, rows // 50, orders, dtype=np.int32),
                }
            ),
            "lineitem": pa.table(
                {
                    "id": np.arange(items, dtype=np.int64),
                    "order_id": rng.integers(0, orders, items, dtype=np.int64),
                    "price": rng.integers(1, 100_000, items, dtype=np.int64),
                }
            ),
        },
        {
            "orders": "id bigint NOT NULL, customer integer NOT NULL",
            "lineitem": "id bigint NOT NULL, order_id bigint NOT NULL, price bigint NOT NULL",
        },
        "SELECT o.customer AS k, count(*) AS n, sum(l.price) AS total"
        " FROM orders o JOIN lineitem l ON l.order_id = o.id GROUP BY o.customer",
    )

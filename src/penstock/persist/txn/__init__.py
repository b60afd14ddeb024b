"""Atomic writes over many shards, through one more shard: the transaction log.

A coordinator commits to any number of tables with one compare-and-append on the txns shard; that also moves
the upper of every registered table, so that thousands of idle tables advance with one write. The writes
reach their own shards later. `TxnsWriter` is the coordinator's side. `TxnsReader` is everybody's: its read
handles behave like those of a plain shard, with the log's frontiers, and deliver small commits straight
from the log. docs/rfcs/0002-txn-wal.md has the format, the protocol and why it is right.
"""

from penstock.persist.txn.listen import TxnsListen
from penstock.persist.txn.reader import TxnsReader, TxnsReadHandle
from penstock.persist.txn.snapshot import TxnsSnapshot
from penstock.persist.txn.writer import TooLate, TxnsWriter

__all__ = ["TooLate", "TxnsListen", "TxnsReadHandle", "TxnsReader", "TxnsSnapshot", "TxnsWriter"]

"""Sessions: from a parsed statement to its effect and its answer.

The room owns sessions and their transactions, the timestamp oracle, group commit, the choice of read times, the
order in which objects come and go, and the start of the whole database. It promises strict serializability: what a
client was told is durable and seen by every later read. It knows statements and plans, and nothing of sockets.
"""

from penstock.adapter.coordinator import Coordinator
from penstock.adapter.environment import Environment, EnvironmentConfig
from penstock.adapter.session import Session

__all__ = ["Coordinator", "Environment", "EnvironmentConfig", "Session"]

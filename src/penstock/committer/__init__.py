"""The consensus committer: one process owns the connections to the consensus store, all others go through it.

The room owns the cache of heads, the gRPC services `Consensus` and `PubSub`, and their clients. To the rooms
above it offers what persist asks for, the `Consensus` and `PubSub` protocols, so that nothing above can tell
a store from a committer in this process (`InProcessConsensus`) or in another (`RpcConsensus`, `RpcPubSub`).
Results and errors, with their determinacy and all their causes, arrive as the store gave them; a broken
transport is `Indeterminate`. It knows nothing of what shards contain.
"""

from penstock.committer.address import CHANNEL_OPTIONS, SERVER_OPTIONS, AddressError, check_address
from penstock.committer.cache import ShardCache
from penstock.committer.client import RpcConsensus
from penstock.committer.credentials import NO_CREDENTIALS, CredentialFiles, Credentials, CredentialsError
from penstock.committer.daemon import Persistd, PersistdConfig
from penstock.committer.in_process import InProcessConsensus
from penstock.committer.pubsub_client import RpcPubSub
from penstock.committer.routed import RoutedConsensus, WrongStore
from penstock.committer.server import CommitterServer
from penstock.committer.waiting import HopelessStore, connected_when_ready, open_when_ready
from penstock.committer.wire import InvalidRequest

__all__ = [
    "CHANNEL_OPTIONS",
    "NO_CREDENTIALS",
    "SERVER_OPTIONS",
    "AddressError",
    "CommitterServer",
    "CredentialFiles",
    "Credentials",
    "CredentialsError",
    "HopelessStore",
    "InProcessConsensus",
    "InvalidRequest",
    "Persistd",
    "PersistdConfig",
    "RoutedConsensus",
    "RpcConsensus",
    "RpcPubSub",
    "ShardCache",
    "WrongStore",
    "check_address",
    "connected_when_ready",
    "open_when_ready",
]

"""The durable catalog: what objects there are, what they depend on, who may change them.

The room owns one shard and the rules of its contents. It promises that a commit is there whole or not at all, that
names are unique, that nothing is dropped under its dependents unasked, and that a coordinator that has been replaced
fails before it writes. It knows nothing of processes, of how views run, or of what the rows of a table are.
"""

from penstock.catalog.catalog import CATALOG_SHARD, TXNS_SHARD_SETTING, Catalog, CatalogFenced
from penstock.catalog.entries import Cluster, Database, Item, ItemColumn, Replica, Role, Schema
from penstock.catalog.session_view import SessionCatalog
from penstock.catalog.state import CatalogState
from penstock.catalog.transaction import SYSTEM_SCHEMAS, CatalogTransaction

__all__ = [
    "CATALOG_SHARD",
    "SYSTEM_SCHEMAS",
    "TXNS_SHARD_SETTING",
    "Catalog",
    "CatalogFenced",
    "CatalogState",
    "CatalogTransaction",
    "Cluster",
    "Database",
    "Item",
    "ItemColumn",
    "Replica",
    "Role",
    "Schema",
    "SessionCatalog",
]

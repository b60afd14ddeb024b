"""SQL: statements, types, and planning through DataFusion.

The room turns text into statements, and statements into queries that DataFusion can plan and that mean what PostgreSQL
says they mean. It owns the SQL types and their Arrow forms, name resolution and type rules, and the functions that
DataFusion lacks. It asks a `CatalogView` for names and knows nothing of where data is, when it is read or who runs it.
"""

from penstock.sql.parse import parse, parse_one
from penstock.sql.types import Column, RelationDesc, SqlType, array_of, numeric, type_by_oid, type_named

__all__ = [
    "Column",
    "RelationDesc",
    "SqlType",
    "array_of",
    "numeric",
    "parse",
    "parse_one",
    "type_by_oid",
    "type_named",
]

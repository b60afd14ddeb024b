"""SQL: statements, types, and planning through DataFusion.

The room turns text into statements, and statements into queries that DataFusion can plan and that mean what PostgreSQL
says they mean. It owns the SQL types and their Arrow forms, name resolution and type rules, and the functions that
DataFusion lacks. It asks a `CatalogView` for names and knows nothing of where data is, when it is read or who runs it.
"""

from penstock.sql.bound import Session
from penstock.sql.errors import map_datafusion_error
from penstock.sql.functions import KERNELS, Kernel, new_context, register, session_config
from penstock.sql.items import CatalogItem, CatalogView, ItemKind
from penstock.sql.parse import parse, parse_one
from penstock.sql.plan import QueryPlan, check_names, explain, optimize, plan_query, planning_context
from penstock.sql.types import Column, RelationDesc, SqlType, array_of, numeric, type_by_oid, type_named

__all__ = [
    "KERNELS",
    "CatalogItem",
    "CatalogView",
    "Column",
    "ItemKind",
    "Kernel",
    "QueryPlan",
    "RelationDesc",
    "Session",
    "SqlType",
    "array_of",
    "check_names",
    "explain",
    "map_datafusion_error",
    "new_context",
    "numeric",
    "optimize",
    "parse",
    "parse_one",
    "plan_query",
    "planning_context",
    "register",
    "session_config",
    "type_by_oid",
    "type_named",
]

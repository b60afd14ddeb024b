"""What Substrait cannot say about a plan: that an anti join is ``NOT IN``.

DataFusion plans both NOT EXISTS and NOT IN as anti joins and marks the latter *null-aware*: once the right
side holds a NULL, no row passes. The mark is lost in Substrait. It is put back as a hint alias on the
JoinRel, which other readers of the plan ignore. Joins are matched by their order, which is the same in the
plan's text and in its Substrait form: a node before its subqueries, those before its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from datafusion.plan import LogicalPlan
from google.protobuf.message import Message
from substrait import algebra_pb2, plan_pb2

from penstock.runtime import SqlError

NULL_AWARE = "null_aware"
"""Hint alias of a JoinRel that is NOT IN."""

_JOIN = re.compile(r"^\s*(?:\w+ )?(?:Join|CrossJoin):(.*)$")


def mark_null_aware(plan: LogicalPlan, serialized: bytes) -> bytes:
    """`serialized`, the Substrait form of `plan`, with its null-aware joins marked.

    Raises `SqlError` 0A000 when there are some and they cannot be told from other joins.
    """
    text = plan.display_indent()
    if NULL_AWARE not in text:
        return serialized
    written = [match[1].rstrip() for match in map(_JOIN.match, text.split("\n")) if match]
    message = plan_pb2.Plan()
    message.ParseFromString(serialized)
    joins = [join for relation in message.relations for join in _joins(relation)]
    if len(joins) != len(written):
        # a text constant may hold a line that looks like a join: better no view than a wrong one
        raise SqlError(
            "NOT IN cannot be told from NOT EXISTS in this query",
            sqlstate="0A000",
            hint="Write NOT EXISTS with an explicit treatment of NULLs instead of NOT IN.",
        )
    for join, line in zip(joins, written, strict=True):
        if line.endswith(f" {NULL_AWARE}"):
            join.common.hint.alias = NULL_AWARE
    return message.SerializeToString()


def _joins(message: Message) -> Iterator[algebra_pb2.JoinRel]:
    """All JoinRels below `message`: each before those in its expressions, these before those in its inputs."""
    if isinstance(message, algebra_pb2.JoinRel):
        yield message
    children = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            children += list(value) if isinstance(value, list) or hasattr(value, "add") else [value]
    for inputs in (False, True):
        for child in children:
            if isinstance(child, algebra_pb2.Rel) is inputs:
                yield from _joins(child)

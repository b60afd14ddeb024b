"""Names of things that several rooms pass on without looking inside."""

from __future__ import annotations

from typing import NewType

GlobalId = NewType("GlobalId", str)
"""A collection: ``u12`` of users, ``s3`` of the system, ``t7`` transient (one peek, one SUBSCRIBE)."""

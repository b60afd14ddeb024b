"""What every room stands on: time, updates, errors, tasks, metrics.

The room owns the few values that all others exchange (`Timestamp`, `Frontier`, `Updates`, the error types)
and the only doors to the outside world that code may use without asking: clock, randomness, tasks, metrics and
logs. It knows nothing of any other room. Simulations replace what is handed out here; code that reads the time
or rolls dice elsewhere cannot be simulated.
"""

from penstock.runtime.clock import Clock, SystemClock, VirtualClock
from penstock.runtime.errors import (
    DataError,
    Determinate,
    ExternalError,
    Indeterminate,
    InternalError,
    PenstockError,
    SqlError,
)
from penstock.runtime.frontier import DONE, MIN_TIME, Frontier, Timestamp, join, meet, step_back
from penstock.runtime.hashing import hash_columns
from penstock.runtime.ids import GlobalId
from penstock.runtime.randomness import random_uuid, randomness, seeded
from penstock.runtime.tasks import TaskOwner
from penstock.runtime.updates import Updates, conform

__all__ = [
    "DONE",
    "MIN_TIME",
    "Clock",
    "DataError",
    "Determinate",
    "ExternalError",
    "Frontier",
    "GlobalId",
    "Indeterminate",
    "InternalError",
    "PenstockError",
    "SqlError",
    "SystemClock",
    "TaskOwner",
    "Timestamp",
    "Updates",
    "VirtualClock",
    "conform",
    "hash_columns",
    "join",
    "meet",
    "random_uuid",
    "randomness",
    "seeded",
    "step_back",
]

"""Penstock: a streaming SQL database.

Rows go in through SQL, views over them are maintained incrementally, answers come out through any
PostgreSQL client. ``docs/design/README.md`` is the map of the rooms below this package.
"""

__version__ = "0.1.0"

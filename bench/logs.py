"""Logs of the processes of a benchmark: warnings and worse, on standard error and not among the figures."""

from __future__ import annotations

import logging
import sys

import structlog


def quiet() -> None:
    """Set up structlog for this process."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )

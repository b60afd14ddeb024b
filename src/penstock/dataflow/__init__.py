"""Incremental dataflow: worker, operators, frontiers, arrangements."""

"""Statements, types and query planning."""

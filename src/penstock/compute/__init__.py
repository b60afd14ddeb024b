"""Relational plans and how they become dataflows."""

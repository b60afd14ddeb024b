"""Benchmarks: one command each, every figure beside a peer's that was measured in the same run.

``python -m bench NAME [--quick] --json`` prints one JSON object per line. They are not tests: nothing asserts a time.
"""

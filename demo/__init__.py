"""The main job on real data: New York's 2013 flights, replayed as live changes.

``python -m demo`` starts the database in a scratch directory, loads January to November as history, creates views and
replays December. The terminal shows the views change. At the end the views are compared with DuckDB's answers from
scratch.
"""

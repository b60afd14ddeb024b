"""The consensus committer: one process owns the connections to the consensus store, all others go through it."""

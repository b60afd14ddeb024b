"""Sessions, statement sequencing, timestamps, group commit, peeks."""

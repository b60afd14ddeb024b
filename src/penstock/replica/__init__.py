"""The process that runs dataflows."""

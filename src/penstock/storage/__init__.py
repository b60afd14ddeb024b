"""Between shards and dataflows."""

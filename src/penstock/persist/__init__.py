"""Durable, versioned, multi-writer shards over a blob store and a compare-and-set store."""

"""The durable catalog."""

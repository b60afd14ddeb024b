"""The PostgreSQL wire protocol."""

"""Controllers: read holds, replica clients, orchestration."""

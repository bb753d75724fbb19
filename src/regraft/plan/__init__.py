"""Plans: their schema, read from and written to TOML; no torch."""

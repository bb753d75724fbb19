"""Files, folders, locks, processes' streams and the store of computed arrays; nothing of a model."""

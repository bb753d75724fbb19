"""Files, folders, locks, standard streams and progress; nothing of a model."""

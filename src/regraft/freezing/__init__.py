"""One file a freezing plug-in; found by its name, see regraft.plugins."""

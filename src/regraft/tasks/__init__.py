"""One file a tasks plug-in; found by its name, see regraft.plugins."""

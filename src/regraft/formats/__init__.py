"""One file a formats plug-in; found by its name, see regraft.plugins."""

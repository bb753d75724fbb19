"""One file a checks plug-in; found by its name, see regraft.plugins."""

"""One file a metrics plug-in; found by its name, see regraft.plugins."""

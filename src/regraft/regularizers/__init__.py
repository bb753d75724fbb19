"""One file a regularizers plug-in; found by its name, see regraft.plugins."""

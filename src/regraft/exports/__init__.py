"""One way out of regraft a file; found by its name, see regraft.plugins and regraft.types.Export."""

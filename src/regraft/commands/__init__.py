"""One file a command: each returns a record and its text; the command line parses and prints."""

"""The whole run: prepare, train, evaluate, write."""

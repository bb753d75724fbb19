"""Rows: read, identified, split, decoded and batched."""

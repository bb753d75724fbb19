"""Device, precision, ranks, memory, versions: the means to compute numbers."""

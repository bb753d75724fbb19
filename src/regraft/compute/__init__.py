"""Where and how numbers are computed: device, precision, ranks, memory, versions."""

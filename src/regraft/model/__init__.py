"""Source and target models: grafting, trainable blocks, forward passes, weights."""

"""A run's model on its way out of regraft: exports, their check, the model card."""

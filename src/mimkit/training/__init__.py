"""Training: the loop, checkpoints, several ranks, precision. It knows a model by its `.loss`, and no method."""

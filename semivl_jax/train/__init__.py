"""Losses, pseudo-labels, optimiser, the training step, checkpoints, the loop."""

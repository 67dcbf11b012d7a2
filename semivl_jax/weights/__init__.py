"""Checkpoints of others to the parameter trees of `models`, and rules over parameter paths."""

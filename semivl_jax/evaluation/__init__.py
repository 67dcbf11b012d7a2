"""Sliding-window inference, confusion matrix, evaluation, pictures."""

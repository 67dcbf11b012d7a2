"""Trained models applied to images of any size."""

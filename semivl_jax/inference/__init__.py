"""Trained models at work on images of any size."""

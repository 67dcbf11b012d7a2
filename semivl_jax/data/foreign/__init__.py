"""Annotated photos as other tools write them, and their conversion to this project's folder layout."""

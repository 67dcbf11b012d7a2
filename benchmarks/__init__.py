"""Measurements behind the figures of the README and the docs; each prints a table and writes JSON."""

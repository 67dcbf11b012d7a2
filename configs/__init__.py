"""Configurations: `base` names every key once, the others change fields."""

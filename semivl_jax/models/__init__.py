"""Flax modules; pure functions of parameters and arrays, importing jax, flax and `types` only."""

"""Host side: data sets, sources, geometry, the input pipeline (NumPy, no jax.numpy)."""

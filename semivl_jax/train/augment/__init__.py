"""Device side: appearance augmentation, strong views, CutMix (jax.numpy, keyed)."""

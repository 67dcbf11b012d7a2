"""SemiVL in JAX: semi-supervised semantic segmentation with vision-language guidance."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semivl_jax.inference.segmenter import Segmentation, Segmenter

__version__ = "0.1.0"
__all__ = ["Segmentation", "Segmenter"]


def __getattr__(name: str) -> Any:
    """`Segmenter` and `Segmentation`, imported when they are first asked for: they bring JAX along."""
    if name in __all__:
        from semivl_jax.inference import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

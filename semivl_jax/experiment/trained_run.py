"""The model of a trained run, for methods that learn from it.

In: the folder of a run, or its `serving`. Out: `train.methods.base.Trained`.
"""

from __future__ import annotations

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.inference import bundle
from semivl_jax.inference.load import check_variables
from semivl_jax.models import build
from semivl_jax.train.methods.base import Trained


def load(path: str, *, info: DatasetInfo) -> Trained:
    """The model with the best weights of a run whose classes are those of `info`.

    Raises:
      ValueError: there is no model, it is damaged, or it has other classes or another order of them.
    """
    stored = bundle.load(path)
    if stored.info.classes != info.classes:
        theirs, ours = stored.info.classes, info.classes
        pairs = zip([*theirs, "none"], [*ours, "none"], strict=False)
        place, (there, here) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        raise ValueError(
            f"{path} has other classes than this training (number {place}: {there!r}, here {here!r}); name "
            f"a run with the same {len(ours)} classes in the same order"
        )
    model = build.segmenter(
        stored.config, num_classes=info.num_classes, clip_sizes=stored.clip_sizes
    )
    check_variables(model, stored, stored.text)
    return Trained(model=model, variables=stored.variables, text=stored.text)

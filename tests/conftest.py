"""Every test runs on eight simulated CPU devices, in full float32, with rank promotion an error.

Shapes written in annotations are checked while the tests run (and only then). Programs are compiled quickly
rather than well (tests/command.py).
"""

import os

from tests.command import compiled_quickly

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= compiled_quickly(devices=8, flags=os.environ.get("XLA_FLAGS", ""))

import jax
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 - the hook below finds it by name
from semivl_jax import host_memory

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# All rooms but `types`, `train.state` and `train.outcome`: their structs also hold abstract arrays
# (eval_shape) and trees of other leaves (tree.map), which no shape annotation fits.
ROOMS = (
    "models",
    "data",
    "text",
    "weights",
    "evaluation",
    "experiment",
    "reporting",
)
TRAIN = (
    "augment",
    "accumulation",
    "agreement",
    "losses",
    "noise",
    "objective",
    "mask_losses",
    "pseudo",
    "ema",
    "optimizer",
    "sharding",
    "step",
    "forward",
    "loop",
    "metrics",
)
install_import_hook(
    [f"semivl_jax.{room}" for room in ROOMS] + [f"semivl_jax.train.{name}" for name in TRAIN],
    "tests.typechecker.check",
)
host_memory.collect_rarely()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: workers take whole files and should end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)

"""Every test runs on eight simulated CPU devices, in full float32, with rank promotion an error.

Shapes written in annotations are checked while the tests run (and only then). Programs are compiled quickly
rather than well, and kept for the next run (tests/command.py).
"""

import contextlib
import gc
import os
import time

from semivl_jax import compiled_programs
from tests.command import CACHE, compiled_quickly

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= compiled_quickly(devices=8, flags=os.environ.get("XLA_FLAGS", ""))

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 - the hook below finds it by name

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# All rooms but `types` and the structs of `train`, which also hold abstract arrays (eval_shape) and trees of
# other leaves (tree.map) that no shape annotation fits.
ROOMS = (
    "models",
    "data",
    "text",
    "weights",
    "evaluation",
    "experiment",
    "reporting",
    "train.augment",
)
TRAIN = (
    "distributed",
    "ema",
    "forward",
    "loop",
    "losses",
    "mask_losses",
    "metrics",
    "optimizer",
    "param_groups",
    "pseudo_labels",
    "sharding",
)
install_import_hook(
    [f"semivl_jax.{room}" for room in ROOMS] + [f"semivl_jax.train.{name}" for name in TRAIN],
    "tests.typechecker.check",
)
gc.freeze()
gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def one_device(monkeypatch):
    """Meshes have the first device only."""
    from semivl_jax.train import sharding  # after the hook above

    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: mesh)


def pytest_configure(config):
    """Compiled programs go when they are damaged, by processes that tests killed, or a month old."""
    if hasattr(config, "workerinput"):
        return
    compiled_programs.check(CACHE)
    month = time.time() - 30 * 24 * 3600
    for path in CACHE.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run was first
            if path.stat().st_mtime < month:
                path.unlink()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, then those of training: workers take whole files and should end at
    about the same time.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, "train" not in item.path.parts))

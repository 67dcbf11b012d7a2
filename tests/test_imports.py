"""Data flows one way: which rooms may import which, checked from the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "semivl_jax"

# What each room may import of the project besides itself: rooms, or single modules of a room.
ALLOWED = {
    "types": set(),
    "caches": set(),
    "utils": set(),
    "compiled_programs": {"caches", "utils"},
    "buckets": {"utils"},
    "data": {"types", "utils"},
    "models": {"types"},
    "weights": {"types", "utils", "data", "models"},
    "text": {"types", "caches", "utils", "data", "models", "weights"},
    "train": {"types", "utils", "buckets", "data", "models", "weights"},
    "evaluation": {"types", "utils", "data", "models", "train.distributed"},
    "config_rules": {"buckets", "text", "models"},
    "config": {"config_rules", "utils", "train", "evaluation"},
    "inference": {"config", "types", "utils", "buckets", "data", "text", "models", "weights", "evaluation"},
    "reporting": {"utils", "evaluation"},
    "experiment": {
        "config", "types", "caches", "utils", "compiled_programs", "buckets", "data", "text", "models",
        "weights", "train", "evaluation", "inference", "reporting",
    },
}  # fmt: skip
FORBIDDEN = {
    "models": {"grain", "tensorflow_datasets", "optax", "orbax"},
    "weights": {"grain", "tensorflow_datasets", "optax", "orbax"},
    "evaluation": {"grain", "tensorflow_datasets", "optax", "orbax"},
    "train": {"grain", "tensorflow_datasets"},
    "data": {"jax.numpy", "flax", "optax"},
    "reporting": {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets"},
}
NOWHERE = {"tensorflow", "torch", "torchvision", "transformers"}
TORCH_FILES = (
    PACKAGE / "weights" / "torch_files.py"
)  # reads torch's own files, where torch is there


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_comes_before_them(room):
    for path in files(room):
        for name in imported(path):
            if within(name, "semivl_jax"):
                allowed = (f"semivl_jax.{target}" for target in ALLOWED[room] | {room})
                assert any(within(name, target) for target in allowed), f"{path} imports {name}"
            assert not within(name, "configs") and not within(name, "tests"), f"{path}: {name}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_host_and_device_stay_apart(room):
    for path in files(room):
        for name in imported(path):
            for package in FORBIDDEN[room]:
                assert not within(name, package), f"{path} imports {name}"


def test_builders_stay_on_the_host():
    for path in sorted((ROOT / "tfds_builders").rglob("*.py")):
        for name in imported(path):
            assert not any(within(name, room) for room in ("jax", "flax", "optax")), (
                f"{path}: {name}"
            )


def test_no_file_needs_tensorflow_or_torch():
    for folder in ("semivl_jax", "configs", "tfds_builders", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in imported(path):
                if path == TORCH_FILES and within(name, "torch"):
                    continue
                assert not any(within(name, package) for package in NOWHERE), f"{path}: {name}"


def test_configurations_only_change_fields():
    for path in sorted((ROOT / "configs").glob("*.py")):
        for name in imported(path):
            known = ("ml_collections", "configs", "semivl_jax.config", "semivl_jax.utils")
            if path.name == "distill.py":  # begins with the configuration of a run
                known += ("semivl_jax.experiment.workdir",)
            assert any(within(name, package) for package in known), f"{path}: {name}"

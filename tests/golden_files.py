"""Reads the golden files: numbers that the published implementation computed.

They lie in tests/golden; SEMIVL_GOLDEN_DIR names another folder of files of the same kinds (other seeds,
sizes and hyper-parameters), and the tests must pass on those unchanged.
"""

import json
import os
from pathlib import Path

import numpy as np


def golden_dir() -> Path:
    return Path(os.environ.get("SEMIVL_GOLDEN_DIR") or Path(__file__).parent / "golden")


class Golden:
    """One file: `meta` (hyper-parameters) and arrays by key."""

    def __init__(self, name: str):
        self._arrays = np.load(golden_dir() / f"{name}.npz")
        self.meta = json.loads(str(self._arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays.files

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self._arrays.files if key.startswith(prefix)]

    def weights(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The state dict stored under `w/<prefix>`, keys without that prefix."""
        head = f"w/{prefix}"
        return {key[len(head) :]: self._arrays[key] for key in self.keys(head)}


def nhwc(array: np.ndarray) -> np.ndarray:
    """Channels last: the files hold B×C×H×W."""
    return np.moveaxis(array, 1, -1)


def assert_close(actual, expected, tolerance: float, what: str = "") -> None:
    """Largest difference at most `tolerance` of the largest magnitude expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(actual.astype(np.float64) - expected).max()) / scale
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"

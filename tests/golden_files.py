"""Reads the golden files: numbers that the published implementation computed.

They lie in tests/golden; SEMIVL_GOLDEN_DIR names another folder of files of the same kinds (other seeds,
sizes and hyper-parameters), and the tests must pass on those unchanged. A file that is not in that folder
is read from tests/golden. Those of further methods lie in the folder `methods` below either.
"""

import json
import os
from pathlib import Path

import numpy as np

OWN = Path(__file__).parent / "golden"


def golden_dir() -> Path:
    folder = Path(os.environ.get("SEMIVL_GOLDEN_DIR") or OWN)
    assert folder.is_dir(), f"SEMIVL_GOLDEN_DIR={folder} is no folder"
    return folder


def files(pattern: str) -> list[str]:
    """Names of the files of one kind, such as "vlg_head*"."""
    found = sorted(path.stem for path in golden_dir().glob(f"{pattern}.npz"))
    return found or sorted(path.stem for path in OWN.glob(f"{pattern}.npz"))


class Golden:
    """One file: `meta` (hyper-parameters) and arrays by key."""

    def __init__(self, name: str, folder: Path | None = None):
        path = (folder or golden_dir()) / f"{name}.npz"
        with np.load(path if path.is_file() else OWN / f"{name}.npz") as file:
            self._arrays = {key: file[key] for key in file.files}
        self.meta = json.loads(str(self._arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self._arrays if key.startswith(prefix)]

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

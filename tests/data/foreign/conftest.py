"""The conversion of a test's own folder."""

import pytest

from semivl_jax import prepare


@pytest.fixture
def convert(tmp_path, capsys):
    """`convert(options)` → (exit code, what was printed, the folder written)."""

    def run(*options):
        out = tmp_path / "out"
        code = prepare.main(["folder", str(tmp_path / "src"), f"--out={out}", *options])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and printed.err.count("\n") <= 1
        return code, printed.out + printed.err, out

    return run

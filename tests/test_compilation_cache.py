"""Kept programs that are damaged cost time and nothing else."""

import os
import subprocess
import sys
import zlib

from semivl_jax import utils
from tests.command import ROOT, compiled_quickly

COMPUTE = """
import sys
import jax, jax.numpy as jnp
from semivl_jax import utils
utils.use_compilation_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T + 1)(jnp.ones((8, 8)))[0, 0])
"""


def compute(folder) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, str(folder)],
        cwd=ROOT,
        env={**os.environ, **compiled_quickly(devices=1), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout


def test_damaged_programs_are_made_again(tmp_path):
    result = compute(tmp_path)
    programs = sorted(tmp_path.glob("*-cache"))
    before = {path: path.read_bytes() for path in programs}
    assert len(programs) >= 3
    damages = [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[: len(content) // 2],
        lambda content: b"",
    ]
    for number, path in enumerate(programs):
        path.write_bytes(damages[number % 3](before[path]))
    (tmp_path / "jit_other-00-cache").write_bytes(b"of another program")
    assert compute(tmp_path) == result
    assert sorted(tmp_path.glob("*-cache")) == programs
    for path in programs:
        assert zlib.decompress(path.read_bytes())
        note = path.with_name(f"{path.name}.crc32")
        assert note.read_text() == f"{zlib.crc32(path.read_bytes()):08x}"


def test_a_flipped_byte_that_decompression_does_not_notice(tmp_path):
    """As with zstandard, which JAX uses without a checksum."""
    (tmp_path / "jit_step-0-cache").write_bytes(zlib.compress(b"program"))
    utils.check_programs(tmp_path)
    (tmp_path / "jit_step-0-cache").write_bytes(zlib.compress(b"programme"))
    assert len(list(tmp_path.iterdir())) == 2
    utils.check_programs(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    utils.use_compilation_cache(str(tmp_path / "file" / "cache"))
    assert "compiled programs are not kept in" in capsys.readouterr().out

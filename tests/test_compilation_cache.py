"""Caches that are damaged or cannot be written cost time and nothing else."""

import subprocess
import sys
import tempfile
import zlib

from configs.tiny import get_config
from semivl_jax import compiled_programs
from semivl_jax.experiment.data import open_data
from tests.command import ROOT, environment
from tests.photos import make_folder

COMPUTE = """
import sys
import jax, jax.numpy as jnp
from semivl_jax import compiled_programs
compiled_programs.use_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T + 1)(jnp.ones((8, 8)))[0, 0])
"""


def compute(folder) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, str(folder)],
        cwd=ROOT,
        env=environment(),
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
    compiled_programs.check(tmp_path)
    (tmp_path / "jit_step-0-cache").write_bytes(zlib.compress(b"programme"))
    assert len(list(tmp_path.iterdir())) == 2
    compiled_programs.check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_costs_only_the_caches(tmp_path, monkeypatch, capfd):
    """Default folders of programs and prepared data; tests/text/test_class_text.py has the third one."""
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = get_config(str(make_folder(tmp_path / "photos")))
    compiled_programs.use_cache(config.compilation_cache)
    for _ in range(2):
        train = open_data(config).train
        assert train.decode(0, label=True)[0].shape == (40, 48, 3)
    (place,) = tmp_path.glob("semivl_jax-*")
    assert train.directory.is_relative_to(place) and not place.stat().st_mode & 0o077
    output, errors = capfd.readouterr()
    assert output.count("preparing") == 1
    cache = tmp_path / "home" / ".cache" / "semivl_jax"
    for folder, key in (("xla", "compilation_cache"), ("data", "data.directory")):
        warning = f"warning: {cache / folder} cannot be written (Not a directory), so "
        (line,) = [line for line in errors.splitlines() if line.startswith(warning)]
        assert line.endswith(f"; name another folder with {key}")

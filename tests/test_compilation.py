"""Programs read in the background, and what happens where they are not what is wanted."""

import importlib
import json
import os
import pickle
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from semivl_jax import compilation, sources

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)


@pytest.fixture(autouse=True)
def everything_is_worthwhile(monkeypatch):
    monkeypatch.setattr(compilation, "_WORTHWHILE_S", -1.0)


def compiled(function, folder, name="run", *, argument=MATRIX, donate=()):
    """The program for a matrix on the first device, and whether it was read."""
    kept = compilation.ReadAhead(str(folder), name, jax.devices()[:1])
    jitted = jax.jit(function, donate_argnums=donate)
    program, line = compilation.ahead(jitted, argument, kept=kept)
    return program, "compiled" not in line


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The file of the only imported module that has one; it is older than this process."""
    path = tmp_path / "module_of_the_step.py"
    path.write_text("FACTOR = 2\n")
    os.utime(path, (0, 0))
    made, in_memory = types.ModuleType(path.stem), types.ModuleType("in_memory")
    made.__file__, in_memory.__file__ = str(path), "in_memory.py"
    imported = {path.stem: made, "in_memory": in_memory, "sys": sys}
    monkeypatch.setattr(sources, "sys", types.SimpleNamespace(modules=imported))
    return path


def started(folder, built_from, *, argument=MATRIX, factor=2):
    """The result for the unit matrix, and how often the function was traced."""
    traces = []

    def multiplied(x):
        traces.append(x)
        return factor * x

    kept = compilation.ReadAhead(str(folder), "run", jax.devices()[:1])
    program, line = compilation.ahead(
        jax.jit(multiplied), argument, kept=kept, built_from=built_from
    )
    assert line.startswith("traced in" if traces else "read in")
    return float(program(jnp.eye(8, dtype=argument.dtype))[0, 0]), len(traces)


def double(x):
    return {"doubled": 2 * x}


def triple(x):
    return {"doubled": 3 * x}


def renamed(x):
    return {"twice": 2 * x}


def test_the_second_start_reads_the_program_of_the_first(tmp_path):
    assert not compiled(double, tmp_path)[1]
    program, read = compiled(double, tmp_path)
    assert read
    out = program(jnp.eye(8))
    assert out.keys() == {"doubled"}
    assert jnp.array_equal(out["doubled"], 2 * jnp.eye(8))


def test_what_is_read_takes_over_arrays(tmp_path):
    compiled(jnp.square, tmp_path, donate=0)
    program, read = compiled(jnp.square, tmp_path, donate=0)
    assert read
    given = jnp.ones((8, 8))
    program(given)
    assert given.is_deleted()


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (triple, MATRIX),
        (renamed, MATRIX),
        (double, jax.ShapeDtypeStruct((8, 9), jnp.float32)),
        (double, jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)),
    ],
)
def test_another_program_under_the_same_name_is_compiled(tmp_path, function, argument):
    compiled(double, tmp_path)
    program, read = compiled(function, tmp_path, argument=argument)
    assert not read
    given = jnp.ones(argument.shape, argument.dtype)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, program(given), function(given)))
    assert compiled(function, tmp_path, argument=argument)[1]  # and takes the place of the other


def test_a_constant_deep_inside_makes_another_program(tmp_path):
    """A text that left out the middle of long constants would take one for the other."""

    def adding(value):
        constant = np.zeros(100_000, np.float32)
        constant[50_000] = value
        return lambda x: x + constant

    line = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    compiled(adding(1), tmp_path, argument=line)
    program, read = compiled(adding(2), tmp_path, argument=line)
    assert not read
    assert float(program(jnp.zeros(100_000))[50_000]) == 2


def test_other_names_settings_and_compilers_look_elsewhere(tmp_path, monkeypatch):
    compiled(double, tmp_path)
    assert not compiled(double, tmp_path, "another run")[1]
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_hlo_as_text=false")
    assert not compiled(double, tmp_path)[1]
    monkeypatch.undo()
    monkeypatch.setattr(compilation, "_WORTHWHILE_S", -1.0)
    monkeypatch.setattr(jax, "__version__", "0.0.0")
    assert not compiled(double, tmp_path)[1]


def test_a_program_for_a_mesh_runs_on_its_devices(tmp_path):
    """Images split over two axes in an order of devices that is not theirs."""
    devices = jax.devices()[::-1]
    mesh = Mesh(np.asarray(devices).reshape(2, -1), ("a", "b"))
    place = NamedSharding(mesh, PartitionSpec(("a", "b")))
    argument = jax.ShapeDtypeStruct((len(devices), 2), jnp.float32, sharding=place)
    given = jax.device_put(np.arange(2.0 * len(devices), dtype=np.float32).reshape(-1, 2), place)
    for start in range(2):
        kept = compilation.ReadAhead(str(tmp_path), "mesh", devices)
        sums = jax.jit(lambda x: (x.sum(0), 2 * x))
        program, line = compilation.ahead(sums, argument, kept=kept)
        assert ("compiled" in line) == (start == 0)
        total, doubled = program(given)
        assert np.array_equal(total, np.asarray(given).sum(0))
        assert np.array_equal(doubled, 2 * np.asarray(given))
        assert [shard.device for shard in doubled.addressable_shards] == [
            shard.device for shard in given.addressable_shards
        ]


def test_the_same_source_origin_and_arguments_are_not_traced_again(tmp_path, module):
    folder = tmp_path / "kept"
    assert started(folder, built_from=("classes", 1)) == (2, 1)
    assert started(folder, built_from=("classes", 1)) == (2, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"built_from": ("classes", 2)},
        {"built_from": None},
        {"built_from": ("classes", 1), "argument": jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)},
    ],
)
def test_another_origin_and_other_arguments_are_traced(tmp_path, module, other):
    folder = tmp_path / "kept"
    started(folder, built_from=("classes", 1))
    assert started(folder, factor=3, **other) == (3, 1)


def test_a_changed_source_is_traced_and_then_known(tmp_path, module, caplog):
    """Same size, same time, another number: only the content tells."""
    caplog.set_level("INFO")
    folder = tmp_path / "kept"
    started(folder, built_from="")
    module.write_text("FACTOR = 3\n")
    os.utime(module, (0, 0))
    assert started(folder, built_from="", factor=3) == (3, 1)
    assert f"{module} has changed" in caplog.text
    assert started(folder, built_from="", factor=3) == (3, 0)
    assert started(folder, built_from="", factor=3) == (3, 0)


def test_a_module_from_elsewhere_is_traced(tmp_path, module, monkeypatch):
    folder = tmp_path / "kept"
    started(folder, built_from="")
    elsewhere = tmp_path / "other" / module.name
    elsewhere.parent.mkdir()
    elsewhere.write_text("FACTOR = 3\n")
    os.utime(elsewhere, (0, 0))
    monkeypatch.setattr(sources.sys.modules[module.stem], "__file__", str(elsewhere))
    assert started(folder, built_from="", factor=3) == (3, 1)


def test_a_removed_source_is_traced(tmp_path, module):
    folder = tmp_path / "kept"
    started(folder, built_from="")
    module.unlink()
    assert started(folder, built_from="", factor=3) == (3, 1)


def test_a_source_that_changed_while_the_program_was_made_is_not_trusted(tmp_path, module):
    """What was imported is not what lies there now."""
    folder = tmp_path / "kept"
    module.write_text("FACTOR = 3\n")
    os.utime(module, (sources._STARTED + 1, sources._STARTED + 1))
    started(folder, built_from="")
    assert started(folder, built_from="", factor=3) == (3, 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": 1, "origin": 2, "sources": 3}'])
def test_a_damaged_list_of_sources_is_traced(tmp_path, module, content):
    folder = tmp_path / "kept"
    started(folder, built_from="")
    (listed,) = (folder / "ahead").glob("*.json")
    listed.write_text(content)
    assert started(folder, built_from="", factor=3) == (3, 1)


def test_a_list_of_sources_belongs_to_one_program(tmp_path, module):
    """Two runs that write at the same time may leave the program of one and the list of the other."""
    folder = tmp_path / "kept"
    started(folder, built_from="")
    (listed,) = (folder / "ahead").glob("*.json")
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"digest": "of another text"}))
    assert started(folder, built_from="", factor=3) == (3, 1)


def test_what_results_are_made_of_is_imported_before_the_background_begins(tmp_path, monkeypatch):
    """Two threads that import modules which import each other find them half done, or wait forever."""
    (tmp_path / "results_of_the_step.py").write_text(
        "import threading, typing\n"
        "BY = threading.current_thread()\n"
        "class Doubled(typing.NamedTuple):\n"
        "    value: object\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def doubling():  # another function every time, which is traced again
        return lambda x: importlib.import_module("results_of_the_step").Doubled(2 * x)

    compiled(doubling(), tmp_path)
    del sys.modules["results_of_the_step"]
    kept = compilation.ReadAhead(str(tmp_path), "run", jax.devices()[:1])
    assert sys.modules["results_of_the_step"].BY is threading.current_thread()
    program, line = compilation.ahead(jax.jit(doubling()), MATRIX, kept=kept)
    assert "compiled" not in line
    assert float(program(jnp.eye(8)).value[0, 0]) == 2


@pytest.mark.parametrize("content", [b"", b"no program", pickle.dumps([]), None])
def test_a_damaged_file_is_compiled_and_replaced(tmp_path, content, caplog):
    caplog.set_level("INFO")
    compiled(double, tmp_path)
    (file,) = (tmp_path / "ahead").iterdir()
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    program, read = compiled(double, tmp_path)
    assert not read
    assert str(file) in caplog.text
    assert float(program(jnp.ones((8, 8)))["doubled"][0, 0]) == 2
    assert compiled(double, tmp_path)[1]


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "ahead").write_text("a file where the folder should be")
    program, read = compiled(double, tmp_path)
    assert not read
    assert float(program(jnp.ones((8, 8)))["doubled"][0, 0]) == 2


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")

    def full(path, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    program, read = compiled(double, tmp_path)
    assert not read
    assert float(program(jnp.ones((8, 8)))["doubled"][0, 0]) == 2
    assert "no space left" in caplog.text
    assert not list((tmp_path / "ahead").iterdir())


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiled(double, "")
    assert not compiled(double, "")[1]
    assert not list(tmp_path.iterdir())


def test_what_compiles_fast_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_WORTHWHILE_S", 60.0)
    compiled(double, tmp_path)
    assert not list(tmp_path.iterdir())

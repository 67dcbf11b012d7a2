"""The command that runs again with huge pages, memory that comes back after compiling, garbage."""

import gc
import os
import subprocess
import sys
import weakref

import jax
import pytest

from semivl_jax import host_memory

PROGRAM = """
import os, sys
from semivl_jax import host_memory
host_memory.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], os.getpid())
"""


def start(tmp_path, **environment):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    given = {k: v for k, v in os.environ.items() if k != host_memory.TUNABLES}
    given |= {"PYTHONPATH": os.getcwd(), **environment}
    process = subprocess.Popen(
        [sys.executable, str(program), "a b", "--c=1"],
        env=given,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.strip(), process.pid


@pytest.mark.skipif(
    not host_memory._on_request(), reason="huge pages are not given on request here"
)
def test_the_same_command_in_the_same_process(tmp_path):
    out, pid = start(tmp_path)
    assert out == f"glibc.malloc.hugetlb=1 ['a b', '--c=1'] {pid}"


def test_what_the_environment_says_stays(tmp_path):
    out, pid = start(tmp_path, GLIBC_TUNABLES="")
    assert out == f"['a b', '--c=1'] {pid}"


def test_only_long_compilations_count(monkeypatch):
    calls = []
    monkeypatch.setattr(host_memory, "give_back", lambda: calls.append(1))
    host_memory.give_back_after_compiling()
    event = "/jax/core/compile/backend_compile_duration"
    jax.monitoring.record_event_duration_secs(event, 0.5)
    jax.monitoring.record_event_duration_secs("/jax/another", 9.0)
    assert not calls
    jax.monitoring.record_event_duration_secs(event, 2.0)
    assert calls == [1]


def test_garbage_is_still_collected():
    class Node:
        pass

    def make_cycle():
        node = Node()
        node.self = node
        return weakref.ref(node)

    host_memory.collect_rarely()
    made = [make_cycle() for _ in range(10 * gc.get_threshold()[0])]
    assert sum(node() is not None for node in made) < len(made) / 2

"""What the compiler was asked for while a test ran."""

import jax
import pytest

_EVENT = "/jax/core/compile/backend_compile_duration"
_events = []


def _listen(event, duration, **_):
    if event == _EVENT:
        _events.append(duration)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compiled():
    """A list that grows by one with every program that XLA compiles."""
    _events.clear()
    return _events


@pytest.fixture
def quick_compiler():
    """The golden networks run a few times each: compiling them well is what would take long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

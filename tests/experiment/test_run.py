import pytest

from configs import tiny
from semivl_jax.config import set_method
from semivl_jax.experiment import run, workdir


class Opened(Exception):
    pass


def test_evaluation_of_a_method_chosen_on_the_command_line_finds_its_run(monkeypatch, tmp_path):
    """`--config.method.name=fixmatch` leaves the fields of the method of the file."""
    trained, named = tiny.get_config(), tiny.get_config()
    trained.batch = named.batch = 8  # the tests have eight devices
    trained.compilation_cache = named.compilation_cache = ""
    set_method(trained, "fixmatch")
    workdir.claim(tmp_path, trained)
    named.method.name = "fixmatch"

    def opened(config):
        raise Opened

    monkeypatch.setattr(run, "_open", opened)
    with pytest.raises(Opened):
        run.evaluate(named, str(tmp_path))
    named.method.confidence_threshold = 0.5
    with pytest.raises(ValueError, match=r"belongs to a run with method\.confidence_threshold"):
        run.evaluate(named, str(tmp_path))

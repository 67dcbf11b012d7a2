"""The report of `--mode=check`; keys of the configuration files."""

import re

import jax
import pytest
from ml_collections import ConfigDict

from configs import demo, folder, remote_sensing, tiny
from semivl_jax.config import default_config, validate
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import dry_run, experiment


def test_check_reports_the_step(one_device):
    """Published configurations: test_published_configs."""
    config = demo.get_config()
    info = DatasetInfo(name="toy", classes=("ground", "disc", "box"))
    report = dry_run.report(experiment.build(config, info, images_per_epoch=100))
    assert f"{config.steps:,} steps of {config.batch} + {config.batch} images" in report
    modules = re.findall(r"^\w+/\w+ +\d+ +([\d,]+)$", report, re.MULTILINE)
    total = int(re.search(r"of ([\d,]+) parameters$", report, re.MULTILINE)[1].replace(",", ""))
    assert sum(int(count.replace(",", "")) for count in modules) == total
    assert len(report.splitlines()) < 60  # one screen, or nearly
    sizes = dict(re.findall(r"^(\S.*?)\s{2,}(\d+\.\d+) GiB$", report, re.MULTILINE))
    assert float(sizes["for the backward pass"]) > 0
    assert "what the compiler needs: add --compile" in report
    assert float(re.search(r"([\d.,]+) GFLOP", report)[1].replace(",", "")) > 0


@pytest.fixture
def smallest(one_device):
    config = tiny.get_config()
    config.method = ConfigDict({"name": "supervised"})
    info = DatasetInfo(name="toy", classes=("ground", "disc", "box"))
    return experiment.build(config, info, images_per_epoch=100)


def test_check_asks_the_compiler_for_its_memory(smallest):
    report = dry_run.report(smallest, compiled=True)
    needs = r"^what the compiler needs: compiled; .* (\S+) GiB per device, (\S+) of them temporary"
    total, temporary = map(float, re.search(needs, report, re.MULTILINE).groups())
    assert total >= temporary > 0


def test_check_of_a_step_that_the_compiler_refuses(smallest, monkeypatch):
    def refuse(_):
        reason = "RESOURCE_EXHAUSTED: Ran out of memory. Used 86.10G of 15.75G hbm.\nmore"
        raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    report = dry_run.report(smallest, compiled=True)
    assert (
        "needs: more than cpu has (RESOURCE_EXHAUSTED: Ran out of memory. Used 86.10G of" in report
    )


def test_configurations_are_valid_and_have_the_keys_of_the_default():
    known = set(default_config().to_dict())
    light = folder.get_config("/photos,model=light")
    for config in (demo.get_config(), tiny.get_config(), folder.get_config("/photos"), light):
        validate(config)
        assert set(config.to_dict()) == known


def test_remote_sensing_has_the_published_settings():
    """Crop, batch, epochs, and that mask value 0 is ignored where the data set has no class there."""
    found = {}
    for images in remote_sensing.SETS:
        config = remote_sensing.get_config(f"/photos,images={images},recipe=paper")
        validate(config)
        assert set(config.to_dict()) == set(default_config().to_dict())
        assert (config.method.teacher, config.method.coupling) == ("student", "published")
        found[images] = (config.data.crop, config.batch, config.epochs, config.evaluation.stride)
        ignored = config.data.label_map.startswith("0:255,1:0,2:1")
        assert ignored == (images in ("whdld", "loveda", "potsdam"))
        assert (config.data.resize == "long_side") == (images == "loveda")
    published = {"whdld": (256, 8, 80, 213), "mer": (512, 4, 150, 426)}
    assert found == {**dict.fromkeys(found, (512, 4, 80, 426)), **published}

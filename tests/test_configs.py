"""The report of `--mode=check`; keys of the configuration files."""

import re

import jax

from configs import demo, folder, remote_sensing, tiny
from semivl_jax.config import default_config, validate
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import dry_run, experiment
from semivl_jax.train import sharding


def test_check_reports_the_step(monkeypatch):
    """Published configurations: test_published_configs."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)
    config = demo.get_config()
    info = DatasetInfo(name="toy", classes=("ground", "disc", "box"))
    report = dry_run.report(experiment.build(config, info, images_per_epoch=100))
    assert f"{config.steps:,} steps of {config.batch} + {config.batch} images" in report
    modules = re.findall(r"^\| \w+/\w+ +\| \d+ +\| ([\d,]+) +\|$", report, re.MULTILINE)
    total = int(re.search(r"of ([\d,]+) parameters$", report, re.MULTILINE)[1].replace(",", ""))
    assert sum(int(count.replace(",", "")) for count in modules) == total
    assert len(report.splitlines()) < 60  # one screen, or nearly
    sizes = dict(re.findall(r"^(\S.*?)\s{2,}(\d+\.\d+) GiB$", report, re.MULTILINE))
    assert float(sizes["for the backward, at most"]) > 0
    assert float(re.search(r"([\d.,]+) GFLOP", report)[1].replace(",", "")) > 0


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

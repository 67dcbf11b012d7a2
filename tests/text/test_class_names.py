"""The class tables of the public data sets are complete and say what the label values mean."""

import subprocess
import sys

import pytest

from semivl_jax.text import class_names

CLASSES = {"voc": 21, "coco": 81, "ade20k": 150, "cityscapes": 19}


@pytest.mark.parametrize("name", class_names.DATASETS)
def test_tables_are_whole(name):
    info = class_names.dataset_info(name)
    assert info.name == name and info.ignore == 255
    assert info.num_classes == CLASSES[name] == len(info.definitions) == len(info.palette)
    assert all(" ".join(c.split()) == c for d in info.definitions for c in d)


def test_definitions_are_the_methods():
    voc = class_names.dataset_info("voc")
    assert voc.classes[0] == "background" and len(voc.definitions[0]) > 40
    assert "pedestrian" in class_names.dataset_info("cityscapes").definitions[11]
    assert class_names.dataset_info("ade20k").definitions[0] == ("wall",)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'imagenet' is unknown; choose one of voc, coco"):
        class_names.dataset_info("imagenet")


def test_host_code_reads_them_without_jax():
    script = (
        "import sys; from semivl_jax.text import class_names; class_names.dataset_info('voc');"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

"""Class names and definitions: of the public data sets, and as users give them."""

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


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "gives class 0 no name"),
        ("a,,b", "gives class 1 no name"),
        ("a, b, a ", r"names the class 'a' twice \(values 0 and 2\)"),
        ("names.txt", "names.txt is no file; correct the path"),
        ([], "names no class"),
        ({"a": []}, "class 'a' an empty concept"),
        ({"a": ["b", " "]}, "class 'a' an empty concept"),
        ([str(i) for i in range(256)], "names 256 classes, a mask can hold 255"),
    ],
)
def test_classes_that_cannot_be_used(classes, message):
    with pytest.raises(ValueError, match=message):
        class_names.read_classes(classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car: \n", r"names\.txt line 1: class 'car' has an empty concept"),
        ("car\ntruck: van,, lorry", r"line 2: class 'truck' has an empty concept"),
        ("car\ncar: van", r"line 2 names the class 'car' twice"),
        (": van", "line 1 has concepts or a colour but no class name"),
        ("\n\n", "names no class"),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        class_names.read_classes(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match="cannot be read as text"):
        class_names.read_classes(tmp_path / "names.txt")


def test_class_files_hold_names_and_concepts(tmp_path):
    (tmp_path / "names.txt").write_text("\ufefftree\n  two-wheeler : bicycle,  motor  bike,\n")
    info = class_names.read_classes(str(tmp_path / "names.txt"))
    assert info.classes == ("tree", "two-wheeler")
    assert info.definitions == (("tree",), ("bicycle", "motor bike"))

"""The argument of a configuration file: paths as people have them."""

import pytest

from configs import arguments, folder


@pytest.mark.parametrize("name", ["a,b", "x=1", "my photos", "split=1", "a,b,c=d e", "x:y"])
@pytest.mark.parametrize("more", ["", ",split=46", ",46", ",tower=clip_vit_b16,split=46"])
def test_paths_with_commas_spaces_and_equals_signs(tmp_path, name, more):
    (tmp_path / name).mkdir()
    data = folder.get_config(f"{tmp_path / name}{more}").data
    assert data.folder == str(tmp_path / name)
    assert data.split == ("46" if "46" in more else "auto")


def test_a_folder_by_its_name_and_one_that_does_not_exist(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert folder.get_config(f"folder={tmp_path}/a,b,split=all").data.folder == f"{tmp_path}/a,b"
    assert folder.get_config("/nowhere=1,split=all").data.folder == "/nowhere=1"
    assert folder.get_config("split=all").data.folder == ""
    with pytest.raises(ValueError, match=r"'x=1' .* also be given as --config.data.folder=PATH"):
        folder.get_config("/nowhere,x=1")


def test_without_a_path():
    found = arguments.parse("b,rest=x", file="f.py", kind=("a", "b"), rest=None)
    assert found == {"kind": "b", "rest": "x"}

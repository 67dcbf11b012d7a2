"""Class lists of people and of other tools are read right, or refused with the line."""

import pytest

from semivl_jax.data.class_files import parse_classes
from semivl_jax.data.text_files import read_lines

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("text", "names", "colours"),
    [
        ("sky\nroad: road, street\n\n\n", ("sky", "road"), {}),
        ("sky #0000ff\nroad #FF0000: road, street", ("sky", "road"), {BLUE: 0, RED: 1}),
        ("sky: #0000ff\nroad #FF0000", ("sky", "road"), {BLUE: 0, RED: 1}),
        ("sky #0000ff\nroad: road, street #FF0000", ("sky", "road"), {BLUE: 0, RED: 1}),
        (
            "# label:color_rgb:parts:actions\nsky:0,0,255::\nroad:255,0,0:lane,kerb:\n",
            ("sky", "road"),
            {BLUE: 0, RED: 1},
        ),
        ("# label:color_rgb:parts:actions\nsky:::\nroad:::\n", ("sky", "road"), {}),
        ("sky,0,0,255\nroad,255,0,0", ("sky", "road"), {BLUE: 0, RED: 1}),
        ("sky 0 0 255\nroad  255\t0 0", ("sky", "road"), {BLUE: 0, RED: 1}),
        ("name, r, g, b\nsky,0,0,255\nroad,255,0,0", ("sky", "road"), {BLUE: 0, RED: 1}),
        ("0 0 255\tsky\n255 0 0\troad", ("sky", "road"), {BLUE: 0, RED: 1}),
        ("Pixel Value, Class\n0, sky\n1, road", ("sky", "road"), {}),
        ("__ignore__\n_background_\ncar", ("background", "car"), {}),
        ("sky #0000ff\n__ignore__ #ff0000", ("sky",), {BLUE: 0, RED: 255}),
        ("0 sky\n1 road", ("sky", "road"), {}),
        ("0: sky\n1: road", ("sky", "road"), {}),
        ("# my classes\nsky\nC#", ("sky", "C#"), {}),
    ],
)
def test_lists(text, names, colours):
    found = parse_classes(text.splitlines(), where="classes.txt")
    assert (found.names, found.colours) == (names, colours)
    if "street" in text:
        assert found.definitions == (("sky",), ("road", "street"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sky\n\nroad", "line 2 is empty, .* class in line 3 has the mask value 1"),
        ("\nsky", "line 1 is empty"),
        ("sky\n__ignore__", "line 2: __ignore__ is no class and has no value"),
        ("sky\nroad #ff00", "line 2 has a # that begins no colour"),
        ("sky\n#ff0000", "line 2 has concepts or a colour but no class name"),
        ("sky 0 0 256\nroad 0 0 0", "line 1 has the colour 0 0 256; its parts are 0 to 255"),
        ("title,r,g,b\nsky,0,0,255", "line 1 gives the class 'title,r,g,b' no colour"),
        ("sky #ff0000\nroad #FF0000", "line 2 gives 'road' the colour of 'sky'"),
        ("sky #ff0000\n__ignore__ #FF0000", "gives __ignore__ the colour of a class"),
        ("1 sky\n2 road", "line 1 has the number 1, but is class 0, counted from 0"),
        ("7: road\n8: sidewalk", "line 1 has the number 7"),
        ("sky\nroad: 12", "line 2: class 'road' has the concept '12'"),
        ("sky\nroad:a:b", "line 2: class 'road' has the concept 'a:b'"),
        ('["sky", "road"]', "line 1 is .*; write one class name per line"),
        ("sky\n3", "line 2 is '3'"),
    ],
)
def test_lines_that_cannot_be_read(text, sentence):
    with pytest.raises(ValueError, match=rf"classes.txt {sentence}"):
        parse_classes(text.splitlines(), where="classes.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings(tmp_path, encoding, end):
    path = tmp_path / "classes.txt"
    path.write_bytes(f"Wäsche{end}Straße{end}".encode(encoding))
    assert read_lines(path) == ["Wäsche", "Straße"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("sky\nroad".encode("utf-16-le"), r"line 1 holds the invisible character U\+0000"),
        ("sky\nro\u200bad".encode(), r"line 2 holds the invisible character U\+200B"),
        ("Wäsche".encode("latin-1"), "cannot be read as text"),
    ],
)
def test_text_that_is_no_text(tmp_path, data, sentence):
    path = tmp_path / "classes.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        read_lines(path)

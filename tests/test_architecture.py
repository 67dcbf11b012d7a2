"""The drawing of the architecture is what the source gives, and says no less than it."""

import pytest

from docs import draw_architecture as drawing


@pytest.fixture(scope="module")
def rows():
    return drawing.boxes((drawing.HERE / "architecture.md").read_text(encoding="utf8"))


def test_the_committed_drawing_is_the_one_of_the_source():
    assert drawing.DRAWING.read_text(encoding="utf8") == drawing.draw(), (
        "imports or the table changed: python -m docs.draw_architecture"
    )


def test_a_module_without_a_row_is_named(rows):
    with pytest.raises(ValueError, match="sweep"):
        drawing.graph({box: names for box, names in rows.items() if box != "sweep"})


def test_arrows_lead_wherever_imports_lead(rows):
    edges, device = drawing.graph(rows)
    arrows = drawing.reduced(edges)
    assert sum(map(len, arrows.values())) < sum(map(len, edges.values()))
    for box in edges:
        assert drawing.reachable(arrows, box) == drawing.reachable(edges, box)
    assert {"models", "augment"} <= device and not {"data", "language", "reporting"} & device


def test_boxes_that_import_each_other_are_no_drawing():
    with pytest.raises(ValueError, match=r"import each other: \['a', 'b'\]"):
        drawing.levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_a_box_stands_above_what_it_imports(rows):
    edges, _ = drawing.graph(rows)
    at, _ = drawing.places(rows, edges)
    for box, below in edges.items():
        assert all(at[box][1] < at[to][1] for to in below)
    for first in at:  # and beside no other
        for second in at:
            (x, y, width, _), (other, top, wide, _) = at[first], at[second]
            if first != second and y == top:
                assert abs(x - other) >= (width + wide) / 2 + 10

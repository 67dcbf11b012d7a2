"""The findings of a report: each rule on small counts, at its limit, and on a good run."""

from pathlib import Path

import numpy as np
import pytest

from semivl_jax.reporting import checks, read
from tests.command import ROOT

GOOD = {
    "scored": [[90, 5, 5], [2, 8, 0], [3, 0, 7]],
    "pseudo": [[74, 3, 3, 20], [2, 6, 0, 2], [1, 0, 4, 5], [0, 0, 0, 0]],
    "predicted": [[90, 5, 5, 0], [2, 8, 0, 0], [3, 0, 7, 0], [0, 0, 0, 0]],
}


def run(**counts):
    """A run with one evaluation; 40 labelled images, of which 10 show the sign, and 1000 unlabelled ones."""
    counts = {name: np.asarray(rows) for name, rows in (GOOD | counts).items()}
    evaluation = read.Evaluation(
        step=500, confusion={"student": counts.pop("scored")}, labels=counts, image_iou={}
    )
    balance = {"pixels": [900, 60, 40], "images": [40, 40, 10]}
    return read.Run(
        name="run",
        workdir=Path("run"),
        config={"evaluation": {"pseudo_label_eval_images": 32}},
        metadata={
            "classes": ["background", "car", "sign"],
            "images": {"labelled": 40, "unlabelled": 1000},
            "balance": {"labelled": balance},
        },
        curves={},
        evaluations=(evaluation,),
        samples=None,
    )


def texts(run):
    return {finding.title: finding.text for finding in checks.findings(run)}


def test_a_good_run_and_a_run_without_evaluation_have_no_finding():
    good = run()
    assert checks.findings(good) == []
    assert checks.findings(read.Run(**(vars(good) | {"evaluations": ()}))) == []


def test_few_pseudo_labels():
    (text,) = texts(run(pseudo=[[7, 0, 0, 73], [0, 1, 0, 9], [0, 0, 1, 9], [0, 0, 0, 1]])).values()
    assert "at step 500: 8.9 % of the pixels" in text
    assert not texts(run(pseudo=[[9, 0, 0, 71], [0, 1, 0, 9], [0, 0, 1, 9], [0, 0, 0, 10]]))


def test_a_class_is_missing_from_the_pseudo_labels():
    # True pixels: 80, 10, 10; labels: 74, 6, 0 of 80; images without masks do not count. Car: 7.5 % of 10 %.
    found = texts(run(pseudo=[[70, 0, 0, 10], [4, 6, 0, 0], [0, 0, 0, 10], [0, 0, 90, 0]]))
    assert list(found) == ["Classes missing from the pseudo-labels"]
    (text,) = found.values()
    assert "sign (0.0 % of the pseudo-labels, 10.0 % of all predictions, 10.0 % of the true" in text
    assert "car" not in text
    # Guidance labels signs: 1 of 40 pixels is a quarter of the true share.
    guidance = [[39, 0, 0, 41], [0, 0, 0, 10], [0, 0, 1, 9], [0, 0, 0, 90]]
    assert not texts(
        run(pseudo=[[70, 0, 0, 10], [4, 6, 0, 0], [0, 0, 0, 10], [0, 0, 90, 0]], guidance=guidance)
    )
    # Labels: 39, 0, 1 of 40: a quarter of the true share, which is not below it.
    limit = [[39, 0, 0, 6], [0, 0, 0, 0], [0, 0, 1, 4], [0, 0, 0, 0]]
    assert not texts(run(pseudo=limit, predicted=limit))


def test_without_masks_the_labelled_masks_are_compared():
    # 40 of 40 labelled images show a car, 10 a sign: 32 and 8 of 32 are expected.
    labels = np.zeros((4, 4), int)
    labels[3] = [970, 13, 17, 10]
    found = texts(run(pseudo=labels, predicted=labels))
    (text,) = found.values()
    assert (
        "car (1.3 % of the pseudo-labels, 1.3 % of all predictions, 6.0 % of the pixels of" in text
    )
    assert "sign" not in text
    labels[3] = [900, 100, 0, 0]
    assert "sign (0.0 %" in texts(run(pseudo=labels))["Classes missing from the pseudo-labels"]
    few = run(pseudo=labels)
    few.metadata["balance"]["labelled"]["images"] = [40, 40, 9]
    assert not texts(few)


def test_a_class_has_wrong_pseudo_labels():
    found = texts(run(pseudo=[[70, 7, 4, 0], [2, 6, 0, 0], [1, 0, 4, 5], [9, 9, 9, 9]]))
    assert list(found) == ["Classes with wrong pseudo-labels"]
    (text,) = found.values()
    assert "car (46 % of its pseudo-labels are right)" in text and "sign" not in text


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        ([80, 0, 20], True),
        ([40, 40, 20], True),
        ([39, 41, 20], False),  # lost to another class
        ([70, 0, 30], False),
    ],
)
def test_a_class_is_predicted_as_the_most_frequent_one(sign, expected):
    found = texts(run(scored=[[900, 5, 5], [20, 80, 0], sign]))
    assert list(found) == ["Classes predicted as the most frequent class"] * expected
    if expected:
        (text,) = found.values()
        share = 100 * sign[0] // (sign[0] + sign[1])
        assert f"sign (20 % of its validation pixels are found, {share} % of the others" in text
        assert "called background)" in text


def test_a_finding_names_few_classes_and_counts_the_others():
    many = run()
    many.metadata["classes"] = [f"c{i}" for i in range(9)]
    counts = np.diag([1000] + [0] * 8)
    counts[1:, 0] = 100
    many.evaluations[0].confusion["student"] = counts
    many.evaluations[0].labels.clear()
    (finding,) = checks.findings(many)
    assert "c5 (" in finding.text and "c6 (" not in finding.text and " and 3 more. " in finding.text


def test_every_finding_has_its_section():
    bad = run(
        scored=[[900, 0, 0], [90, 10, 0], [0, 0, 10]],
        pseudo=[[0, 4, 0, 76], [0, 1, 0, 9], [0, 0, 0, 10], [0, 0, 0, 0]],
    )
    found = checks.findings(bad)
    assert len(found) == 4
    page = (ROOT / checks.PAGE).read_text(encoding="utf8")
    for finding in found:
        assert f"\n### {finding.title}\n" in page
        assert str(finding).startswith(f"{finding.title}: at step 500: ")

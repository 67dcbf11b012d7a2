"""The report of a run: what it shows, incomplete workdirs, and its scripts in a browser."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks import browser
from semivl_jax import report
from semivl_jax.evaluation import samples
from semivl_jax.reporting import charts, page, read
from tests.reporting.workdir import METRICS, make_workdir

CLASSES = 7


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    return make_workdir(folder, classes=CLASSES, steps=60, images=3, size=(60, 90))


@pytest.fixture
def copy(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "copy")


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text outside of scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self._skip = [], [], False
        self.source = path.read_text(encoding="utf8")
        self.feed(self.source)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        if not self._skip:
            self.words += data.split()

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self):
        return json.loads(re.search(r'id="figures">(.*?)</script>', self.source, re.S)[1])


def written(*workdirs, out):
    assert report.main([*map(str, workdirs), f"--out={out}"]) == 0
    return Page(out)


def test_page_shows_everything_is_labelled_and_makes_no_request(workdir, tmp_path):
    shown = written(workdir, out=tmp_path / "page.html")
    ids = {part["data-figure"] for part in shown.all("div") if "data-figure" in part}
    assert {"eval-miou", "train-loss", "train-lr", "eval-right", "confusion-0", "balance-0"} <= ids
    assert set(shown.figures()) == ids
    for name in (f"class {i:03d}" for i in range(CLASSES)):
        assert shown.text.count(name) >= 2  # legend and table
    assert "8 × TPU" in shown.text and "1 h 0 min" in shown.text and "60 of 60" in shown.text
    pictures = shown.all("img")
    assert len(pictures) == 3 * 7 and all(image["alt"] for image in pictures)
    stored = json.loads((workdir / "samples" / "samples.json").read_text())["samples"]
    ordered = [entry["id"] for entry in sorted(stored, key=lambda entry: entry["iou"])]
    assert [i["alt"] for i in pictures if i["alt"].startswith("image of")] == [
        f"image of {id}" for id in ordered
    ]
    assert all(re.match(r"data:image/(png|jpeg);base64,", image["src"]) for image in pictures)
    addresses = [value for _, attributes in shown.elements for key, value in attributes.items()
                 if key in ("src", "href")]  # fmt: skip
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert len(shown.all("h1")) == 1 and all(head.get("scope") for head in shown.all("th"))
    anchors = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {a["href"][1:] for a in shown.all("a")} <= set(anchors)


def test_class_table_and_charts_have_the_logged_numbers(workdir):
    of = read.load(workdir)
    counts = np.load(workdir / "evaluations" / "0000060.npz")["confusion/ema"]
    for index, row in enumerate(page._classes(of, [])["rows"]):
        union = counts[index].sum() + counts[:, index].sum() - counts[index, index]
        assert row["iou"] == pytest.approx(100 * counts[index, index] / union)
    cells = charts.confusion(of).figure["cells"]
    shares = np.reshape(cells, (CLASSES, CLASSES)) / 10
    np.testing.assert_allclose(shares, 100 * counts / counts.sum(1, keepdims=True), atol=0.051)
    pixels = of.metadata["balance"]["labelled"]["pixels"]
    bars = charts.balance(of).figure["series"]
    assert bars[0]["y"] == pytest.approx(100 * np.array(pixels) / sum(pixels), rel=1e-4)
    loss = next(chart for chart in charts.curves([of]) if chart.id == "train-loss").figure
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    points = [(line["step"], line["train/loss_s1"]) for line in lines if "train/loss_s1" in line]
    line = next(series for series in loss["series"] if series["name"] == "s1")
    assert line["x"] == [x for x, _ in points]
    assert line["y"] == pytest.approx([y for _, y in points], rel=1e-4)


def test_metrics_of_an_unknown_method_are_shown(copy, tmp_path):
    values = {"train/threshold_low": 0.5, "train/threshold_high": 0.9, "loose": 3.0}
    of_classes = {f"eval/own_threshold/class {i:03d}": 10.5 + i for i in range(CLASSES)}
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 61, **values, **of_classes}) + "\n")
    shown = written(copy, out=tmp_path / "page.html")
    series = shown.figures()["train-threshold"]["series"]
    assert [(line["name"], line["y"]) for line in series] == [("high", [0.9]), ("low", [0.5])]
    assert "-loose" in shown.figures() and not any("own" in id for id in shown.figures())
    assert "own threshold" in shown.text and "16.5" in shown.text  # in the table of classes
    drawn = sum(len(f["series"]) for f in shown.figures().values() if f["kind"] == "lines")
    assert drawn == len(METRICS) + 3 + len(values)  # nothing that was logged is left out


def test_table_of_pseudo_labels_has_the_counted_numbers(copy):
    counts = np.full((CLASSES + 1, CLASSES + 1), 2)
    counts[0, 0], counts[:, -1] = 30, 5
    rewrite_newest(copy, {"labels/pseudo": counts, "labels/predicted": counts})
    of = read.load(copy)
    (table,) = page._labels(of)
    assert table["title"] == "Pseudo-label" and len(table["rows"]) == CLASSES
    row = dict(zip(table["head"], table["rows"][0], strict=True))
    # 16 labels of every class and 28 more of the first, of which the masks know 14 and 28 more.
    pixels = of.metadata["balance"]["labelled"]["pixels"]
    true = 30 + 2 * (CLASSES - 1) + 5
    assert row == {
        "class": "class 000",
        "labelled masks": f"{100 * pixels[0] / sum(pixels):.2f}",
        "true pixels": f"{100 * true / (CLASSES * (true - 28) + 28):.2f}",
        "all predictions": f"{100 * 44 / (CLASSES * 16 + 28):.2f}",
        "pseudo-label": f"{100 * 44 / (CLASSES * 16 + 28):.2f}",
        "precision": f"{100 * 30 / 42:.1f}",
        "coverage": f"{100 * 42 / 47:.1f}",
        "found": f"{100 * 30 / 47:.1f}",
    }


def test_table_of_pseudo_labels_without_masks(copy):
    counts = np.zeros((CLASSES + 1, CLASSES + 1), int)
    counts[-1, :2] = 30, 10
    rewrite_newest(copy, {"labels/pseudo": counts, "labels/predicted": counts})
    (table,) = page._labels(read.load(copy))
    assert table["head"] == ["class", "labelled masks", "all predictions", "pseudo-label"]
    assert [row[-1] for row in table["rows"]] == ["75.00", "25.00"] + ["0.00"] * (CLASSES - 2)


def test_counts_of_images_with_masks_only_are_read(copy):
    counts = np.arange(CLASSES * (CLASSES + 1)).reshape(CLASSES, -1)
    rewrite_newest(copy, {"labels/pseudo": counts})
    read_counts = read.load(copy).evaluations[-1].labels["pseudo"]
    np.testing.assert_array_equal(read_counts[:-1], counts)
    assert not read_counts[-1].any()


def test_findings_are_shown_for_a_bad_run_only(workdir, copy, tmp_path):
    confusion = np.load(copy / "evaluations" / "0000060.npz")["confusion/ema"]
    most = int(confusion.sum(1).argmax())
    lost = (most + 1) % CLASSES
    confusion[lost] = 0
    confusion[lost, most] = confusion[most].sum() // 2
    rewrite_newest(copy, {"confusion/ema": confusion})
    text = (
        f"class {lost:03d} (0 % of its validation pixels are found, 100 % of the others are called"
    )
    assert text in written(copy, out=tmp_path / "bad.html").text
    compared = written(workdir, copy, out=tmp_path / "two.html").text
    assert compared.count("may not help") == 1 and text in compared
    assert "may not help" not in written(workdir, out=tmp_path / "good.html").text


def rewrite_newest(workdir, arrays):
    path = workdir / "evaluations" / "0000060.npz"
    with np.load(path) as stored:
        np.savez_compressed(path, **(dict(stored) | arrays))


def test_several_runs_are_compared(workdir, copy, tmp_path):
    (copy / "config.json").write_text(json.dumps({"steps": 60, "data": {"crop": 321}}))
    shown = written(workdir, copy, out=tmp_path / "page.html")
    assert "data.crop 512 321" in shown.text and "steps 60 60" not in shown.text
    assert {"confusion-0", "confusion-1"} <= shown.figures().keys()
    for chart in ("eval-miou", "train-loss-s1"):
        assert [s["name"] for s in shown.figures()[chart]["series"]] == ["run", "copy"]
    other = shutil.copytree(workdir, tmp_path / "other" / "run")
    names = [name for _, name in page._names([workdir, other])]
    assert names == [f"{workdir.parent.name}/run", "other/run"]


@pytest.mark.parametrize(
    "missing", ["run.json", "metrics.jsonl", "evaluations", "samples", "samples/000-truth.png"]
)
def test_a_missing_part_is_left_out(missing, copy, tmp_path):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "eval/iou/class 000": 50.0}\n')
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shown = written(copy, out=tmp_path / "page.html")
    assert not any(id.startswith("eval-iou") for id in shown.figures())


def test_a_run_that_was_just_started_has_a_report(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    shown = written(tmp_path, out=tmp_path / "page.html")
    assert "No metrics have been logged" in shown.text and "no evaluation yet" in shown.text


def test_incomplete_files_are_skipped(copy, tmp_path):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "train/loss": nul')
    (copy / "evaluations" / "0000090.npz").write_bytes(b"PK\x03\x04 half")
    (copy / "samples" / "samples.json").write_text('{"step": 6')
    of = read.load(copy)
    assert of.steps == 60 and of.evaluations[-1].step == 60 and of.samples is None
    written(copy, out=tmp_path / "page.html")


def test_errors_are_one_sentence(workdir, tmp_path, capsys, monkeypatch):
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "holds no run" in error and str(tmp_path) in error
    monkeypatch.setattr(page, "write", lambda *_: 1 / 0)
    assert page.write_after_training(workdir) is None
    assert "the run is not affected" in capsys.readouterr().err


def test_class_names_are_escaped(copy, tmp_path):
    metadata = json.loads((copy / "run.json").read_text())
    metadata["classes"][0] = "</script><b>bold & brash"
    (copy / "run.json").write_text(json.dumps(metadata))
    shown = written(copy, out=tmp_path / "page.html")
    assert "</script><b>bold" in shown.text and "</script><b>" not in shown.source


def test_long_curves_are_thinned_to_means_and_keep_ends_and_extremes():
    steps, values = np.arange(1, 20001), np.linspace(5, 1, 20000)
    values[7000], values[9000:9010] = 50, np.nan
    thinned = charts.thin((steps, values))
    assert len(thinned.steps) == charts.POINTS and np.all(np.diff(thinned.steps) > 0)
    assert thinned.steps[0] == 1 and thinned.steps[-1] == 20000
    # 50 steps to a point: the means are on the straight line, except for the peak's.
    flat = thinned.high < 50
    off = np.abs(thinned.mean - np.interp(thinned.steps, steps, np.linspace(5, 1, 20000)))
    assert off[flat].max() < 50 * 4 / 20000 and (~flat).sum() == 1 and off[~flat] > 0.5
    assert thinned.low.min() == values[-1] and np.isfinite(thinned.mean).all()
    short = charts.thin((steps[:9], values[:9]))
    np.testing.assert_array_equal(short.mean, values[:9])


def test_sample_colours_name_their_classes():
    palette = np.array([[9, 9, 9], [9, 9, 9], [200, 0, 0], [9, 9, 9]], np.uint8)
    colours = samples.distinct(palette)
    assert len({tuple(c) for c in colours.tolist()}) == 4
    np.testing.assert_array_equal(colours[[0, 2]], palette[[0, 2]])
    assert np.abs(colours.astype(int) - palette).max() <= 3


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
@pytest.mark.filterwarnings("default::ResourceWarning")
def test_in_a_browser(workdir, copy, tmp_path):
    one = page.write([workdir], tmp_path / "one.html")
    two = page.write([workdir, copy], tmp_path / "two.html")
    with browser.Browser() as chromium:
        for path, size in ((one, "desktop"), (one, "phone"), (two, "phone")):
            chromium.resize(size)
            chromium.open(path)
            _draws(chromium)
            assert chromium.run("return document.images.length") >= 21
            assert chromium.run(
                "return [...document.images].every(i => i.complete && i.naturalWidth)"
            )
            assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
        chromium.open(one)
        _fits_again(chromium)
        _reads_charts(chromium)
        _sorts(chromium)
        _names_pixels(chromium, workdir)
        _changes_colours(chromium)
        assert chromium.console() == []


PIXELS = """
const near = (data, colour) => {
  const want = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200 && want.every((part, j) => Math.abs(data[i + j] - part) < 5)) count++;
  return count;
};
const figures = JSON.parse(document.getElementById("figures").textContent);
return [...document.querySelectorAll(".plot")].map((place) => {
  const canvas = place.querySelector("canvas"), figure = figures[place.dataset.figure];
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const series = figure.series || [{ name: "right", colour: "#f59e0b", y: [] }];
  return series.map((s) => [place.dataset.figure + " " + s.name, near(data, s.colour), s.y]);
});
"""


def _draws(page):
    """Every chart has pixels in the colour of each of its lines or bars; the grid in its own."""
    charts_seen = page.run(PIXELS)
    assert len(charts_seen) >= 8
    for series in charts_seen:
        for number, (name, pixels, values) in enumerate(series):
            if all(values != above for _, _, above in series[number + 1 :]):
                assert pixels > 20, name


def _fits_again(page):
    """Charts follow the width of the window."""
    widths = (
        "return [...document.querySelectorAll('.plot')]"
        ".map(p => [p.clientWidth, p.querySelector('canvas').clientWidth])"
    )
    for name in ("desktop", "phone"):
        page.resize(name)
        WebDriverWait(page.driver, 10).until(
            lambda _: all(place >= drawn > 0.9 * place for place, drawn in page.run(widths))
        )


def _reads_charts(page):
    """Arrow keys read out the values of lines and of a cell; a button hides its line."""
    press = (
        "const p = document.querySelector('[data-figure=\"{}\"]'); p.focus();"
        "for (const key of {}) p.dispatchEvent(new KeyboardEvent('keydown', {{key}}));"
        "return p.querySelector('.tip').textContent"
    )
    text = page.run(press.format("train-share", ["Home", "ArrowRight"]))
    assert text.startswith("step 2") and "guidance: " in text
    page.run("document.querySelectorAll('[data-figure=\"train-share\"]')[0].parentElement"
             ".querySelectorAll('.series button')[1].click()")  # fmt: skip
    text = page.run(press.format("train-share", ["ArrowRight"]))
    assert text.startswith("step 3") and "guidance" not in text
    keys = ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown"]
    cell = page.run(press.format("confusion-0", keys))
    share = page.run("return JSON.parse(document.getElementById('figures').textContent)"
                     f"['confusion-0'].cells[2 * {CLASSES} + 1] / 10")  # fmt: skip
    assert cell == f"class 002predicted as class 001: {share} %".replace(".0 %", " %")


def _sorts(page):
    column = (
        "return [...document.querySelectorAll('table.sortable tbody tr')]"
        ".map(row => parseFloat(row.cells[1].textContent))"
    )
    assert len(page.run(column)) == CLASSES
    press = "document.querySelectorAll('table.sortable thead button')[1].click()"
    page.run(press)
    falling = page.run(column)
    assert falling == sorted(falling, reverse=True)
    page.run(press)
    assert page.run(column) == sorted(falling)


def _names_pixels(page, workdir):
    """The centre of every map, read out with the arrow keys, has the class that was stored there."""
    page.run(
        "const p = document.querySelector('.picture'); p.focus();"
        "p.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));"
        "p.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}));"
    )
    said = page.run("return document.querySelector('.readout').textContent")
    stored = json.loads((workdir / "samples" / "samples.json").read_text())["samples"]
    worst = min(stored, key=lambda entry: entry["iou"])
    with Image.open(workdir / "samples" / worst["files"]["truth"]) as picture:
        value = np.asarray(picture)[picture.height // 2, picture.width // 2]
    assert f"ground truth: class {value:03d}" in said and "confidence: " in said


def _changes_colours(page):
    paper = "return getComputedStyle(document.body).backgroundColor"
    page.resize("desktop")
    seen = {page.run(paper)}
    for _ in range(3):
        page.run("document.getElementById('theme').click()")
        seen.add(page.run(paper))
    assert len(seen) == 2

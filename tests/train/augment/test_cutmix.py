import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train.augment import cutmix
from tests.golden_files import Golden, nhwc

# Two samples differ by chance; five standard errors are exceeded once in two million comparisons.
ERRORS = 5


@pytest.fixture(scope="module")
def published() -> dict:
    return Golden("transforms").meta["cutmix_stats"]


@pytest.fixture(scope="module")
def rectangles(published) -> np.ndarray:
    draw = jax.jit(cutmix.draw_rectangles, static_argnums=1, static_argnames="size")
    return np.asarray(draw(jax.random.key(0), published["n"], size=published["size"]))


@pytest.fixture(scope="module")
def samples(rectangles) -> dict[str, np.ndarray]:
    x, y, width, height = rectangles[rectangles[:, 2] * rectangles[:, 3] > 0].T
    return {
        "area": width * height,
        "width": width,
        "height": height,
        "x": x,
        "y": y,
        "ratio_h_over_w": height / width,
    }


@pytest.mark.golden
def test_share_of_empty_boxes(published, rectangles):
    assert published["p"] == cutmix.PROBABILITY
    share = (rectangles[:, 2] * rectangles[:, 3] == 0).mean()
    error = np.sqrt(2 * share * (1 - share) / published["n"])
    assert abs(share - published["frac_empty"]) < ERRORS * error


@pytest.mark.golden
@pytest.mark.parametrize("name", ["area", "width", "height", "x", "y", "ratio_h_over_w"])
def test_distribution(name, published, samples):
    sample, expected = samples[name], published[name]
    count = len(sample)
    mean, deviation = sample.mean(), sample.std()
    assert abs(mean - expected["mean"]) < ERRORS * deviation * np.sqrt(2 / count)
    if "std" in expected:
        # Standard error of a standard deviation, from the sample's fourth moment.
        kurtosis = np.mean((sample - mean) ** 4) / deviation**4
        error = deviation * np.sqrt((kurtosis - 1) / 4 * 2 / count)
        assert abs(deviation - expected["std"]) < ERRORS * error
    for level, quantile in zip(published["quantile_levels"], expected["quantiles"], strict=True):
        # At the ends the normal approximation fails: there, beyond the other sample's extreme lie
        # k values with probability 2**-k.
        error = ERRORS * np.sqrt(2 * level * (1 - level) / count) + 20 / count
        assert np.mean(sample < quantile) - error <= level <= np.mean(sample <= quantile) + error


@pytest.mark.golden
def test_pixels_covered(published, rectangles):
    # Mean share of the crop, counting empty boxes.
    covered = rectangles[:, 2] * rectangles[:, 3] / published["size"] ** 2
    error = covered.std() * np.sqrt(2 / published["n"])
    assert abs(covered.mean() - published["pixel_cover_mean"]) < ERRORS * error


@pytest.mark.parametrize("size", [1, 2, 7, 64, 801])
def test_boxes_lie_inside(size):
    x, y, width, height = np.asarray(cutmix.draw_rectangles(jax.random.key(1), 500, size=size)).T
    assert min(x.min(), y.min(), width.min(), height.min()) >= 0
    assert (x + width).max() <= size
    assert (y + height).max() <= size


def test_masks_are_the_rectangles():
    key = jax.random.key(2)
    masks = np.asarray(cutmix.cutmix_boxes(key, 40, size=16))
    assert masks.dtype == bool
    for mask, (x, y, width, height) in zip(
        masks, np.asarray(cutmix.draw_rectangles(key, 40, size=16)), strict=True
    ):
        expected = np.zeros((16, 16), bool)
        expected[y : y + height, x : x + width] = True
        np.testing.assert_array_equal(mask, expected)


def test_fallback_is_a_square_inside(monkeypatch):
    """With no draw left but the last resort, boxes still fit and keep their area."""
    monkeypatch.setattr(cutmix, "RATIO", (50.0, 50.0))
    monkeypatch.setattr(cutmix, "AREA", (0.4, 0.4))
    drawn = np.asarray(cutmix.draw_rectangles(jax.random.key(3), 200, size=32))
    drawn = drawn[drawn[:, 2] > 0]
    assert len(drawn) > 50
    assert (drawn[:, 2:] == 20).all()
    assert (drawn[:, :2] + drawn[:, 2:]).max() <= 32
    assert len(np.unique(drawn[:, 0])) > 5


def test_one_image_does_not_depend_on_the_batch():
    key = jax.random.key(4)
    few, many = (cutmix.draw_rectangles(key, count, size=32) for count in (3, 8))
    np.testing.assert_array_equal(few, many[:3])


def test_size_zero_is_an_error():
    with pytest.raises(ValueError, match="crop of 0"):
        cutmix.draw_rectangles(jax.random.key(0), 1, size=0)


@pytest.mark.golden
def test_cutmix_of_images_and_labels():
    golden = Golden("losses")
    box = jnp.asarray(golden["in/cutmix/box"] == 1)
    image = cutmix.mix(
        box,
        jnp.asarray(nhwc(golden["in/cutmix/img"])),
        jnp.asarray(nhwc(golden["in/cutmix/img_other"])),
    )
    np.testing.assert_array_equal(image, nhwc(golden["out/cutmix/img"]))
    label = cutmix.mix(
        box, jnp.asarray(golden["in/cutmix/label"]), jnp.asarray(golden["in/cutmix/label_other"])
    )
    np.testing.assert_array_equal(label, golden["out/cutmix/label"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bool_, jnp.uint8])
def test_mix_keeps_the_dtype(dtype):
    box = jnp.array([[[True, False]]])
    mixed = cutmix.mix(box, jnp.zeros((1, 1, 2), dtype), jnp.ones((1, 1, 2), dtype))
    assert mixed.dtype == dtype
    np.testing.assert_array_equal(mixed, [[[1, 0]]])


def test_mix_of_two_dtypes_is_an_error():
    box = jnp.ones((1, 1, 2), bool)
    with pytest.raises(ValueError, match="int32 with uint8"):
        cutmix.mix(box, jnp.zeros((1, 1, 2), jnp.int32), jnp.zeros((1, 1, 2), jnp.uint8))

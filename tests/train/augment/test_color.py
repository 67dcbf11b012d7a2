import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train.augment import blur, color
from tests.golden_files import Golden
from tests.train.augment.batches import floats

gaussian_blur = jax.jit(blur.gaussian_blur, static_argnames="max_sigma")


def items(*ops: str) -> list[dict]:
    meta = Golden("transforms").meta["items"]
    return [item for item in meta if any(item["op"].startswith(op) for op in ops)]


def one(value) -> jax.Array:
    return jnp.asarray([value], jnp.float32)


def golden_image() -> jax.Array:
    return jnp.asarray(Golden("transforms")["in/img"], jnp.float32)[None]


def assert_two_levels(actual, name: str):
    """Float on the device, 8 bits in the file: two grey levels on 99 % of the pixels."""
    difference = np.abs(np.asarray(actual[0]) - Golden("transforms")[f"out/{name}"].astype(float))
    assert (difference.max(axis=-1) <= 2).mean() >= 0.99, f"{name}: up to {difference.max()}"


@pytest.mark.golden
@pytest.mark.parametrize("item", items("adjust_"), ids=lambda item: item["name"])
def test_adjust(item):
    function = {
        "adjust_brightness": color.adjust_brightness,
        "adjust_contrast": color.adjust_contrast,
        "adjust_saturation": color.adjust_saturation,
        "adjust_hue": color.adjust_hue,
    }[item["op"]]
    assert_two_levels(jax.jit(function)(golden_image(), one(item["factor"])), item["name"])


@pytest.mark.golden
@pytest.mark.parametrize("item", items("color_jitter"), ids=lambda item: item["name"])
def test_color_jitter(item):
    order = jnp.asarray([[color.OPERATIONS.index(name) for name in item["order"]]], jnp.int32)
    jitter = color.Jitter(**{k: one(v) for k, v in item["factors"].items()}, order=order)
    assert_two_levels(jax.jit(color.color_jitter)(golden_image(), jitter), item["name"])


@pytest.mark.golden
def test_grayscale():
    assert_two_levels(jax.jit(color.grayscale)(golden_image()), "gray3")


@pytest.mark.golden
@pytest.mark.parametrize("item", items("pil_gaussian_blur"), ids=lambda item: item["name"])
def test_blur(item):
    radius = item["radius"]
    blurred = gaussian_blur(golden_image(), one(radius), max_sigma=max(2.0, radius))
    assert_two_levels(blurred, item["name"])


@pytest.mark.parametrize(
    "function", [color.adjust_brightness, color.adjust_contrast, color.adjust_saturation]
)
def test_factor_one_is_identity(function):
    np.testing.assert_array_equal(function(floats(), jnp.ones(4)), floats())


def test_extreme_factors():
    images, zeros = floats(), jnp.zeros(4)
    assert not color.adjust_brightness(images, zeros).any()
    np.testing.assert_array_equal(color.adjust_saturation(images, zeros), color.grayscale(images))
    flat = color.adjust_contrast(images, zeros)
    np.testing.assert_array_equal(flat.min(axis=(1, 2, 3)), flat.max(axis=(1, 2, 3)))


def test_grey_has_equal_channels_and_stays_grey():
    grey = color.grayscale(floats())
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_array_equal(color.grayscale(grey), grey)
    np.testing.assert_array_equal(color.adjust_hue(grey, jnp.full(4, 0.2)), grey)


def test_hue_by_zero_moves_colours_by_the_steps_of_8_bit_hsv_only():
    difference = jnp.abs(color.adjust_hue(floats(), jnp.zeros(4)) - floats())
    assert difference.max() <= 8
    assert difference.mean() < 2


def draw(key, count: int) -> color.Jitter:
    return color.draw_jitter(key, count, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25)


def test_jitter_draws_are_in_range_and_orders_are_uniform_permutations():
    count = 4800
    jitter = jax.jit(draw, static_argnums=1)(jax.random.key(0), count)
    for name in ("brightness", "contrast", "saturation"):
        factor = getattr(jitter, name)
        assert 0.5 <= factor.min() < 0.52
        assert 1.48 < factor.max() <= 1.5
    assert -0.25 <= jitter.hue.min() < -0.24
    assert 0.24 < jitter.hue.max() <= 0.25
    np.testing.assert_array_equal(jnp.sort(jitter.order, axis=1), np.tile(np.arange(4), (count, 1)))
    _, counts = np.unique(np.asarray(jitter.order), axis=0, return_counts=True)
    assert len(counts) == 24
    # 24 equally likely orders: five standard errors.
    expected = count / 24
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_jitter_equals_its_operations_one_after_another():
    """Every one of the 24 orders, each in a batch with the others."""
    jitter = draw(jax.random.key(1), 24)
    orders = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4)
    orders = orders[[len(set(order)) == 4 for order in orders]]
    jitter = jitter.replace(order=jnp.asarray(orders, jnp.int32))
    images = floats(24, 8)
    actual = jax.jit(color.color_jitter)(images, jitter)
    operations = {
        0: (jax.jit(color.adjust_brightness), jitter.brightness),
        1: (jax.jit(color.adjust_contrast), jitter.contrast),
        2: (jax.jit(color.adjust_saturation), jitter.saturation),
        3: (jax.jit(color.adjust_hue), jitter.hue),
    }
    for i, order in enumerate(orders):
        expected = images[i : i + 1]
        for index in order:
            function, factors = operations[int(index)]
            expected = function(expected, factors[i : i + 1])
        # Compiled and uncompiled arithmetic may truncate to neighbouring levels.
        assert (jnp.abs(actual[i] - expected[0]) <= 2).mean() > 0.98, order


def test_jitter_of_one_image_does_not_depend_on_the_others():
    images, jitter = floats(), draw(jax.random.key(2), 4)
    together = jax.jit(color.color_jitter)(images, jitter)
    fields = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.order]

    def alone(image, *values):
        one = color.Jitter(*(value[None] for value in values))
        return color.color_jitter(image[None], one)[0]

    np.testing.assert_array_equal(jax.jit(jax.vmap(alone))(images, *fields), together)


def test_jitter_keeps_the_range_and_whole_numbers():
    jittered = jax.jit(color.color_jitter)(floats(16), draw(jax.random.key(3), 16))
    assert jittered.min() >= 0
    assert jittered.max() <= 255
    np.testing.assert_array_equal(jittered, jnp.round(jittered))


class TestBlur:
    def test_sigma_zero_is_identity(self):
        np.testing.assert_array_equal(
            gaussian_blur(floats(), jnp.zeros(4), max_sigma=2.0), floats()
        )

    def test_flat_images_stay_flat(self):
        flat = jnp.full((3, 9, 7, 3), 255.0)
        sigma = jnp.array([0.1, 1.0, 2.0])
        np.testing.assert_array_equal(gaussian_blur(flat, sigma, max_sigma=2.0), flat)

    def test_more_taps_than_needed_change_nothing(self):
        sigma = jnp.array([0.1, 0.7, 1.5, 2.0])
        few = gaussian_blur(floats(), sigma, max_sigma=2.0)
        np.testing.assert_array_equal(gaussian_blur(floats(), sigma, max_sigma=6.0), few)

    def test_batch_equals_single_equals_jit(self):
        sigma = jnp.array([0.0, 0.7, 1.5, 2.0])
        together = gaussian_blur(floats(), sigma, max_sigma=2.0)
        for i in range(4):
            alone = blur.gaussian_blur(floats()[i : i + 1], sigma[i : i + 1], max_sigma=2.0)
            np.testing.assert_array_equal(alone[0], together[i])

    def test_images_smaller_than_the_taps(self):
        tiny = floats()[:, :1, :2]
        assert gaussian_blur(tiny, jnp.full(4, 2.0), max_sigma=2.0).shape == tiny.shape

    def test_spread_is_sigma(self):
        image = jnp.zeros((1, 41, 41, 1)).at[0, :, 20].set(255.0)
        row = gaussian_blur(image, jnp.array([2.0]), max_sigma=2.0)[0, 20, :, 0]
        distance = jnp.arange(41) - 20
        variance = jnp.sum(row * distance**2) / jnp.sum(row)
        np.testing.assert_allclose(variance, 4.0, rtol=0.03)

    def test_negative_maximum_is_an_error(self):
        with pytest.raises(ValueError, match=r"max_sigma = -1"):
            gaussian_blur(floats(), jnp.zeros(4), max_sigma=-1.0)

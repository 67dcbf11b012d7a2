import io

import numpy as np
import pytest
from PIL import Image

from semivl_jax.data import crop_window, images
from tests.golden_files import Golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("transforms")


def items(op: str) -> list[dict]:
    return [item for item in Golden("transforms").meta["items"] if item["op"] == op]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestGolden:
    pytestmark = pytest.mark.golden

    @pytest.mark.parametrize("item", items("pil_resize"), ids=lambda item: item["name"])
    def test_pillow(self, item, golden):
        self.compare(crop_window.crop_pillow, tuple(item["size_wh"][::-1]), item, golden)

    @pytest.mark.parametrize("item", items("mmseg_resize"), ids=lambda item: item["name"])
    def test_opencv(self, item, golden):
        shape, scale = golden["in/mask"].shape, item["scale"]
        size = images.fit_size(*shape, long=max(scale), short=min(scale))
        assert size == tuple(item["out_wh"][::-1])
        self.compare(crop_window.crop_opencv, size, item, golden)

    def compare(self, cut, size, item, golden):
        """A crop that holds the whole scaled image."""
        image, label = golden["in/img"], golden["in/mask"]
        crop = cut(image, label, size=size, crop=max(size), left=0, top=0)
        assert crop.size == size
        whole = np.s_[: size[0], : size[1]]
        np.testing.assert_array_equal(crop.image[whole], golden[f"out/{item['name']}/img"])
        np.testing.assert_array_equal(crop.label[whole], golden[f"out/{item['name']}/mask"])

    @pytest.mark.parametrize("item", items("crop"), ids=lambda item: item["name"])
    def test_crop(self, item, golden):
        place = {"crop": item["size"], "left": item["x"], "top": item["y"]}
        image, label = golden["in/img"], golden["in/mask"]
        crop = crop_window.crop_opencv(image, label, size=label.shape, **place)
        np.testing.assert_array_equal(crop.image, golden[f"out/{item['name']}/img"])
        # The published padding of unlabelled images is another value; here it is a size.
        rows, columns = crop.size
        label = np.full_like(crop.label, item["ignore_value"])
        label[:rows, :columns] = crop.label[:rows, :columns]
        np.testing.assert_array_equal(label, golden[f"out/{item['name']}/mask"])
        assert (crop.label[rows:] == 255).all()
        assert (crop.label[:, columns:] == 255).all()

    def test_ratio_rule(self, golden):
        table = golden.meta["resize_train"]
        long, short = max(table["img_scale"]), min(table["img_scale"])
        for row in table["rows"]:
            named = dict(zip(table["columns"], row, strict=True))
            limits = int(long * named["ratio"]), int(short * named["ratio"])
            assert limits == (named["scale_0"], named["scale_1"])
            size = images.fit_size(named["in_h"], named["in_w"], long=limits[0], short=limits[1])
            assert size == (named["out_h"], named["out_w"]), named

    def test_short_side_rule(self, golden):
        table = golden.meta["resize_val"]
        short = max(table["min_size"], min(table["img_scale"]))
        for row in table["rows"]:
            named = dict(zip(table["columns"], row, strict=True))
            image = np.zeros((named["in_h"], named["in_w"], 3), np.uint8)
            resized = images.resize_short_side(image, short=short)
            assert resized.shape == (named["out_h"], named["out_w"], 3), named

    def test_long_side_rule(self, golden):
        table = golden.meta["pil_resize_rule"]
        for row in table["rows"]:
            named = dict(zip(table["columns"], row, strict=True))
            size = images.long_side_size(
                named["in_h"], named["in_w"], long=named["drawn_long_side"]
            )
            assert size == (named["out_h"], named["out_w"]), named


class TestDecodeImage:
    @pytest.mark.parametrize("size", [(48, 64), (37, 51), (1, 9)])
    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    def test_jpegs_have_the_pixels_that_pillow_reads(self, size, subsampling):
        smooth = Image.fromarray(noise(5, 7, 3)).resize(size[::-1], Image.Resampling.BICUBIC)
        for quality in (40, 75, 95):
            for progressive in (False, True):
                options = {"quality": quality, "progressive": progressive}
                data = encoded(smooth, "JPEG", subsampling=subsampling, **options)
                theirs = np.asarray(Image.open(io.BytesIO(data)))
                np.testing.assert_array_equal(images.decode_image(data), theirs)

    def test_jpegs_that_are_not_plain(self):
        gray = encoded(Image.fromarray(noise(16, 16)), "JPEG")
        assert np.ptp(images.decode_image(gray), axis=2).max() == 0
        data = encoded(Image.fromarray(noise(16, 16, 3)), "JPEG")
        trailing = images.decode_image(data + b"a camera's note")
        np.testing.assert_array_equal(trailing, images.decode_image(data))
        middle = len(data) // 2
        with pytest.raises(ValueError, match="cannot be read as an image"):
            images.decode_image(data[:middle])

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
    def test_modes(self, mode):
        source = Image.fromarray(noise(5, 7, 3)).convert(mode)
        decoded = images.decode_image(encoded(source))
        np.testing.assert_array_equal(decoded, np.asarray(source.convert("RGB")))

    def test_cmyk(self):
        source = Image.fromarray(noise(16, 16, 3)).convert("CMYK")
        smooth = source.resize((64, 64))  # JPEG keeps it, so the colours can be compared
        decoded = images.decode_image(encoded(smooth, "JPEG", quality=100)).astype(int)
        assert np.abs(decoded - np.asarray(smooth.convert("RGB"))).mean() < 3

    def test_palette_with_transparency(self):
        source = Image.fromarray(noise(5, 7, 3)).convert("P")
        decoded = images.decode_image(encoded(source, transparency=bytes(range(256))))
        np.testing.assert_array_equal(decoded, np.asarray(source.convert("RGB")))

    def test_sixteen_bits(self):
        gray = np.array([[0, 255, 256, 65535]], np.uint16)
        decoded = images.decode_image(encoded(Image.fromarray(gray)))
        np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 255])

    def test_orientation(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
        image = noise(5, 7, 3)
        decoded = images.decode_image(encoded(Image.fromarray(image), exif=exif))
        np.testing.assert_array_equal(decoded, np.rot90(image, -1))
        photo = Image.fromarray(image)
        upright = images.decode_image(encoded(photo, "JPEG"))
        turned = images.decode_image(encoded(photo, "JPEG", exif=exif))
        np.testing.assert_array_equal(turned, np.rot90(upright, -1))

    @pytest.mark.parametrize(
        "data", [b"", b"not an image", encoded(Image.new("RGB", (64, 64)))[:60]]
    )
    def test_broken(self, data):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            images.decode_image(data)

    def test_png_with_damaged_pixels(self):
        """Pillow alone reads such files as something else."""
        data = encoded(Image.fromarray(noise(24, 32)))
        place = len(data) // 2
        with pytest.raises(ValueError, match="checksum"):
            images.open_upright(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_check_labels():
    images.check_labels(np.array([[0, 20, 255]], np.uint8), num_classes=21)
    with pytest.raises(ValueError, match=r"value 21, 254, but the 21 classes.*0 … 20; correct"):
        images.check_labels(np.array([[0, 21, 254, 255]], np.uint8), num_classes=21)

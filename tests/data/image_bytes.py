"""Encoded images of unusual kinds, written by hand or by tifffile's and OpenCV's encoders."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def png_bits(values: np.ndarray, depth: int, *, palette: bytes = b"") -> bytes:
    """Grey or palette PNG with so many bits per sample."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape
    kind = 3 if palette else 0
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + _packed(row, depth) for row in values)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    if palette:
        parts.insert(1, chunk(b"PLTE", palette))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_bits(values: np.ndarray, depth: int, *, white_is_zero: bool = False) -> bytes:
    """Grey TIFF with so many bits per sample."""
    height, width = values.shape
    rows = b"".join(_packed(row, depth) for row in values)
    tags = ((256, width), (257, height), (258, depth), (259, 1), (262, 1 - white_is_zero),
            (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, height), (279, len(rows)))  # fmt: skip
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + entries + bytes(4) + rows


def _packed(row: np.ndarray, depth: int) -> bytes:
    bits = "".join(format(int(value), f"0{depth}b") for value in row)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def encoded_by_opencv(pixels: np.ndarray, suffix: str) -> bytes:
    """RGB or grey pixels of any type that the format takes."""
    exact = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if suffix == ".jp2" else []
    done, data = cv2.imencode(suffix, pixels if pixels.ndim == 2 else pixels[:, :, ::-1], exact)
    assert done
    return data.tobytes()


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """An image of Pillow as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()

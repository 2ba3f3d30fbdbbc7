"""Images that a detector accepts, and the one-sentence error for each that it rejects."""

import cv2
import numpy as np
import pytest
from PIL import Image

from nanodet_jax.errors import UserError
from nanodet_jax.inference.inputs import check_color, read_image
from tests.builders import noise, write_image


def test_read_image_returns_bgr_of_every_kind_of_array():
    bgr = noise(5, 7)
    alpha = np.full((5, 7, 1), 9, np.uint8)
    rgb = bgr[..., ::-1]
    gray = bgr[..., 0]
    for given, color, expected in (
        (bgr, "bgr", bgr),
        (rgb, "rgb", bgr),
        (np.concatenate([bgr, alpha], -1), "bgr", bgr),
        (np.concatenate([rgb, alpha], -1), "rgb", bgr),
        (gray, "bgr", np.stack([gray] * 3, -1)),
        (gray[..., None], "rgb", np.stack([gray] * 3, -1)),
    ):
        np.testing.assert_array_equal(read_image(given, color=color), expected)


def test_read_image_does_not_copy_color_arrays():
    image = noise(5, 7)
    for color in ("bgr", "rgb"):
        assert np.shares_memory(read_image(image, color=color), image)


def test_read_image_converts_pillow_images_of_every_8_bit_mode():
    bgr = noise(5, 7)
    image = Image.fromarray(bgr[..., ::-1])
    np.testing.assert_array_equal(read_image(image), bgr)
    np.testing.assert_array_equal(read_image(image.convert("RGBA")), bgr)
    for mode in ("L", "LA", "P", "1", "CMYK"):
        converted = image.convert(mode)
        expected = np.asarray(converted.convert("RGB"))[..., ::-1]
        np.testing.assert_array_equal(read_image(converted), expected)


def test_read_image_rotates_a_file_but_not_a_pillow_image(tmp_path):
    path = write_image(tmp_path / "a.png", noise(5, 7), orientation=6)
    assert read_image(path).shape == (7, 5, 3)
    with Image.open(path) as image:
        assert read_image(image).shape == (5, 7, 3)


def test_read_image_reads_a_path_given_as_text(tmp_path):
    pixels = noise(5, 7)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), pixels)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "image is None, which cv2.imread returns for a file that it cannot read; pass "),
        (5, "image has type int; pass a path, a Pillow image, or a uint8 array"),
        (b"jpeg", "image has type bytes; pass a path"),
        ([[1, 2]], "image has type list; pass a path"),
        (np.zeros((4, 4, 3), np.float32), "dtype float32: must be uint8, from 0 to 255; multiply"),
        (np.zeros((4, 4, 3), np.uint16), "dtype uint16: must be uint8, from 0 to 255; convert it"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\): must be .* 1, 3 or 4 channels"),
        (np.zeros((4, 0, 3), np.uint8), "not empty"),
        (Image.new("I;16", (4, 4)), "Pillow image of mode 'I;16': must have 8 bits per channel"),
        (Image.new("RGB", (0, 4)), "size 0x4: must not be empty"),
    ],
)
def test_read_image_names_what_is_given_and_what_is_accepted(given, message):
    with pytest.raises(UserError, match=message) as caught:
        read_image(given)
    assert "\n" not in str(caught.value)


def test_read_image_of_a_truncated_pillow_image_is_one_sentence(tmp_path):
    path = write_image(tmp_path / "a.jpg", noise(64, 64))
    path.write_bytes(path.read_bytes()[:-2000])
    with Image.open(path) as image, pytest.raises(UserError, match="Pillow cannot decode it: "):
        read_image(image)


def test_check_color_rejects_other_orders():
    with pytest.raises(UserError, match="color='RGB': must be \"bgr\""):
        check_color("RGB")

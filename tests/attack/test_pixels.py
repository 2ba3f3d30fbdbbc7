"""Extreme augmentation, and images of one pixel or one line: no batch contains NaN."""

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax.config import Config, check
from nanodet_jax.data import transforms
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, prepare_for_inference, training_batches
from nanodet_jax.errors import UserError
from nanodet_jax.training.parallel import make_augment
from tests.attack.coco_files import write

SIZES = ((1, 1), (1, 5000), (5000, 1), (3, 2), (40, 30))  # height, width
EXTREMES = {
    "nothing": {},
    "perspective": {"perspective": 1e3},
    "perspective to nothing": {"perspective": 1e20},
    "perspective beyond float32": {"perspective": 1e300},
    "scale down": {"scale": (1e-300, 1e-20)},
    "scale up": {"scale": (1e20, 1e300)},
    "shear": {"shear": 90.0},
    "rotation": {"rotation": 1e300},
    "translate": {"translate": 1e300},
    "brightness": {"brightness": 1e9},
    "contrast": {"contrast": (1e-46, 1e9)},
    "saturation": {"saturation": (1e-46, 1e9)},
    "colours": {"brightness": 1e5, "contrast": (1e-46, 1e5), "saturation": (1e-46, 1e5)},
}
TOO_MUCH = {
    "brightness": {"brightness": 1e38},
    "contrast": {"contrast": (1.0, 1e39)},
    "saturation": {"saturation": (1.0, 1e300)},
    "all": {"brightness": 1e10, "contrast": (1.0, 1e10), "saturation": (1.0, 1e10)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write images of extreme sizes, each with a box that covers it."""
    folder = tmp_path_factory.mktemp("data")
    write(folder, classes=1, images=len(SIZES), boxes=1, name=str)
    rng = np.random.default_rng(0)
    text = (folder / "annotations.json").read_text()
    for index, (height, width) in enumerate(SIZES, start=1):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    text = text.replace('"width": 64, "height": 64', '"width": 0, "height": 0')
    (folder / "annotations.json").write_text(text)
    return folder


def config_of(folder, **augment):
    config = Config(input_size=(64, 64))
    config.data.train_images, config.data.batch_size = str(folder), len(SIZES)
    config.data.train_annotations = str(folder / "annotations.json")
    for name, value in augment.items():
        setattr(config.augment, name, value)
    check(config)
    return config


@pytest.mark.parametrize("keep_ratio", [False, True])
@pytest.mark.parametrize("augment", ["host", "device"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_augmentation_of_extreme_images_gives_finite_batches(
    extreme, augment, keep_ratio, folder
):
    config = config_of(folder, **EXTREMES[extreme])
    config.data.augment, config.data.keep_ratio = augment, keep_ratio
    source = open_source(config, "train")
    batches = training_batches(source, config, count_slots(source, 0)[0])
    render = make_augment(config)
    for _ in range(3):
        batch = jax.device_get(render(next(batches)))
        assert np.isfinite(batch.images).all()
        assert np.isfinite(batch.ground_truth.boxes).all()


def test_warp_to_an_empty_image_is_black_on_host_and_device(folder):
    images = []
    for augment in ("host", "device"):
        config = config_of(folder, scale=(1e-200, 1e-200))
        config.data.augment, config.compat.pixel_index_warp = augment, False
        batches = training_batches(open_source(config, "train"), config, slots=1)
        images.append(jax.device_get(make_augment(config)(next(batches)).images))
    black = transforms.normalize(
        np.zeros((64, 64, 3), np.float32), config.data.mean, config.data.std
    )
    inside = np.s_[:, 1:63, 1:63]
    np.testing.assert_allclose(images[1][inside], np.broadcast_to(black, images[1].shape)[inside],
                               atol=1e-5)  # fmt: skip
    assert np.isfinite(images[0]).all()


@pytest.mark.parametrize("what", TOO_MUCH)
def test_colors_beyond_float32_are_refused_by_field(what, folder):
    config = config_of(folder, **TOO_MUCH[what])
    with pytest.raises(UserError, match=r"config\.augment\.brightness=.* pixels would reach"):
        training_batches(open_source(config, "train"), config, slots=1)


@pytest.mark.parametrize("field, values", [("std", (1e-50,) * 3), ("mean", (0.0, 1e39, 0.0))])
def test_normalization_beyond_float32_is_refused_by_field(field, values, folder):
    config = config_of(folder)
    setattr(config.data, field, values)
    check(config)
    with pytest.raises(UserError, match=r"config\.data\.mean=.*config\.data\.std=.*would reach"):
        training_batches(open_source(config, "train"), config, slots=1)
    with pytest.raises(UserError, match=r"config\.data\.mean="):
        prepare_for_inference(np.zeros((4, 4, 3), np.uint8), config)

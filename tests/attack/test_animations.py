"""Files with several frames: the first is decoded quickly, at the size in the header."""

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nanodet_jax.config import Config
from nanodet_jax.data.image_files import shown_size, stored_size
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import training_batches
from nanodet_jax.inference.inputs import read_image
from tests.attack.animations import MAKERS, RED, SIZE, encoded, webp

SHAPE = (SIZE[1], SIZE[0])
MAX_SECONDS = 5.0  # per file; they take milliseconds
MEASURE = """
import re, sys
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.data.image_files import stored_size
setup_process()
data = open(sys.argv[1], "rb").read()
stored_size(open(sys.argv[2], "rb").read())
# Not ru_maxrss, which starts at the memory of the parent process.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
size = [stored_size(data) for _ in range(4)]
print(size[0][0], size[0][1], peak() - before)
"""


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize("frames", [1, 3, 10_000])
def test_first_frame_is_read_whatever_the_number_of_frames(suffix, frames, tmp_path):
    if suffix == "jpg" and frames > 3:
        frames = 100  # written by Pillow, one by one
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(MAKERS[suffix](frames))
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == frames
    started = time.monotonic()
    assert stored_size(path.read_bytes()) == shown_size(path) == SHAPE
    pixels = read_image(path)
    assert time.monotonic() < started + MAX_SECONDS
    assert pixels.shape == (*SHAPE, 3)
    assert np.abs(pixels.astype(int) - RED[::-1]).max() <= 2  # JPEG rounds


def test_training_batch_has_the_first_frame_of_each_file(tmp_path):
    images, annotations = [], []
    for id, (suffix, make) in enumerate(MAKERS.items()):
        (tmp_path / f"{id}.{suffix}").write_bytes(make(3))
        images.append({"id": id, "file_name": f"{id}.{suffix}", "width": 64, "height": 48})
        annotations.append({"id": id, "image_id": id, "category_id": 1, "bbox": [1, 2, 30, 20]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    config = Config(input_size=(64, 64))
    config.data.train_images, config.data.train_annotations = str(tmp_path), f"{tmp_path}/a.json"
    config.data.batch_size, config.data.max_unreadable = len(MAKERS), 0.0
    config.data.mean, config.data.std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    batch = next(training_batches(open_source(config, "train"), config, slots=1))
    middle = batch.images[:, 32, 32]
    np.testing.assert_allclose(middle, np.broadcast_to([0, 0, 1], middle.shape), atol=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_webp_is_measured_without_memory_for_its_canvas(tmp_path):
    bomb, small = tmp_path / "bomb.webp", tmp_path / "small.webp"
    bomb.write_bytes(webp(1, canvas=(9000, 9000)))
    small.write_bytes(webp(1))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, bomb, small],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    height, width, kilobytes = map(int, done.stdout.split())
    assert (height, width) == (9000, 9000)
    assert kilobytes < 20_000  # two canvases of four bytes a pixel would be 648,000


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"quality": 1}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3), (640, 479)])
def test_webp_header_agrees_with_pillow_and_opencv(options, mode, size, tmp_path):
    path = tmp_path / "picture.webp"
    Image.new(mode, size).save(path, **options)
    with Image.open(path) as image:
        assert stored_size(path.read_bytes()) == image.size[::-1]
    assert cv2.imread(str(path)).shape[:2] == shown_size(path) == size[::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_webp_rotated_by_exif_has_the_size_that_opencv_decodes(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for data in (
        encoded(RED, "WEBP", exif=exif),
        webp(3, exif=exif.tobytes()),
        webp(3, exif=exif.tobytes().removeprefix(b"Exif\0\0")),
    ):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert shown_size(data) == decoded.shape[:2]


def test_webp_with_too_many_chunks_has_no_size():
    data = bytearray(webp(1))
    data[20] |= 0x08  # declares EXIF
    assert stored_size(bytes(data) + b"JUNK\0\0\0\0" * (1 << 17)) is None
    for end in range(len(data)):
        assert stored_size(bytes(data[:end])) in (None, SHAPE)

"""Whatever readers are given: they return what they promise, or raise a UserError of one line.

Crashers that were found stay as examples. More of them are looked for with FUZZ_EXAMPLES=5000.
"""

import copy
import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from nanodet_jax import config as configs
from nanodet_jax.data.coco import CocoSource
from nanodet_jax.data.records import decode, make_record
from nanodet_jax.data.voc import VocSource, voc_classes
from nanodet_jax.errors import UserError
from nanodet_jax.npz_file import read_npz
from nanodet_jax.pytorch_file import read_state_dict
from nanodet_jax.weights import read_description
from tests.test_pytorch_file import TensorStub, archive, save, tensor, torch  # noqa: F401

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 60))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.integers()
    | st.sampled_from([10**18, 2**63, 10**400, -(10**400), 1e308, -0.0, float("nan")])
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["a.png", "../a.png", "/a.png", "deep/a.png", "\ud800", "a\0", "loop/loop"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def accepts(read, *arguments):
    """What comes of it, None for a UserError, whose message must be fit for a line."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error)
        repr(str(error)).encode()
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, some behind links, and room for annotations."""
    folder = tmp_path_factory.mktemp("fuzz")
    images = folder / "images"
    (images / "deep").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(images / "a.png")
    Image.new("RGB", (20, 10)).save(images / "deep" / "a.png")
    (images / "loop").symlink_to("loop")
    return folder


def check_records(source):
    """Records as `Record` promises them, and ground truth that lists as many."""
    truth = source.ground_truth()
    json.dumps(truth)
    assert len(truth["images"]) >= len(source)
    for index in range(len(source)):
        record = source[index]
        n = len(record.boxes)
        assert (record.boxes.shape, record.boxes.dtype) == ((n, 4), np.float32)
        assert np.isfinite(record.boxes).all()
        assert (record.boxes[:, 2:] >= record.boxes[:, :2]).all()
        assert len(record.labels) == len(record.ignore) == len(record.areas) == n
        assert ((record.labels >= 0) & (record.labels < len(source.categories))).all()
        assert record.width >= 0 and record.height >= 0
        assert source.num_boxes(index) == n


@st.composite
def coco_files(draw):
    """A sound file of which, as it is drawn, hardly anything is odd or missing, or a lot."""
    odd = st.sampled_from([False] * draw(st.sampled_from([4, 40, 400])) + [True])

    def item(**sound):
        kept = {key: value for key, value in sound.items() if not draw(odd)}
        return {key: draw(JSON) if draw(odd) else value for key, value in kept.items()}

    names = st.sampled_from(["a.png", "deep/a.png"])
    side = st.integers(0, 30) | st.floats(0, 30)
    content = {
        "images": [
            item(id=i, file_name=draw(names), width=20, height=10)
            for i in range(draw(st.integers(1, 3)))
        ],
        "annotations": [
            item(
                id=i,
                image_id=0,
                category_id=draw(st.sampled_from([3, 5])),
                bbox=[draw(SCALARS) if draw(odd) else draw(side) for _ in range(4)],
                iscrowd=draw(st.integers(0, 1)),
            )
            for i in range(draw(st.integers(0, 4)))
        ],
        "categories": [item(id=3, name="cat"), item(id=5, name="dog")],
    }
    return item(**content)


def coco(folder, text):
    file = folder / "labels.json"
    file.write_bytes(text)
    return CocoSource(folder / "images", file)


@fuzz
@given(coco_files() | JSON)
@example({"images": [{"id": 7, "file_name": "a.png"}], "annotations": [],
          "categories": [{"id": 3, "name": "\ud800"}]})  # fmt: skip
@example({"images": [{"id": 7, "file_name": "\ud800"}], "annotations": [],
          "categories": [{"id": 3, "name": "cat"}]})  # fmt: skip
def test_coco(folder, content):
    source = accepts(coco, folder, json.dumps(content).encode())
    if source is not None:
        check_records(source)


@fuzz
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="ignore")))
@example(b'{"images": ' + b"9" * 5000 + b"}")  # more digits than int() takes
@example(b"[" * 100_000)
@example(b"\xef\xbb\xbf[]")
def test_coco_of_any_bytes(folder, content):
    assert accepts(coco, folder, content) is None


NUMBER = st.sampled_from(["", "1", "5", "12", "19", "-3", "nan", "inf", "1e400", "0x1", "_1", "1_0",
                          "\u0661", "five"])  # fmt: skip


@st.composite
def xmls(draw):
    """An xml whose parts may each be sound, odd, or absent."""

    def sides(names):
        drawn = {name: draw(NUMBER) for name in names if draw(st.integers(0, 9))}
        return "".join(f"<{name}>{value}</{name}>" for name, value in drawn.items())

    objects = [
        f"<object><name>{draw(st.sampled_from(['cat', 'dog', '', '&amp;', 'é', '&#7;']))}</name>"
        f"<bndbox>{sides(('xmin', 'ymin', 'xmax', 'ymax'))}</bndbox></object>"
        for _ in range(draw(st.integers(0, 3)))
    ]
    size = f"<size>{sides(('width', 'height'))}</size>" if draw(st.booleans()) else ""
    name = draw(st.sampled_from(["a.png", "../a.png", "", "deep", "loop", "x" * 300]))
    text = f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"
    start, end = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return text[start * (start > 2) : len(text) - end * (end > 2)].encode()


def voc(folder, text):
    split = folder / "train"
    (split / "annotations").mkdir(parents=True, exist_ok=True)
    if not (split / "images").exists():
        (split / "images").symlink_to(folder / "images")
    (split / "annotations" / "a.xml").write_bytes(text)
    accepts(voc_classes, folder)
    return VocSource(folder, "train", ("cat", "dog"))


@fuzz
@given(xmls() | st.binary(max_size=80))
@example(b'<?xml version="1.0" encoding="utf-7"?><annotation/>')
@example(b'<?xml version="1.0" encoding="idna"?><annotation/>')
@example(b"<a>" * 100_000)
def test_voc(folder, content):
    source = accepts(voc, folder, content)
    if source is not None:
        check_records(source)


def encoded(format, **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = [encoded(name) for name in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")]
IMAGES += [encoded("JPEG", exif=EXIF), encoded("PNG", exif=EXIF)]


@st.composite
def changed(draw, originals):
    """Bytes of a file of which some are other ones, and the end may be missing."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, min(len(data), 300) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@fuzz
@given(changed(IMAGES) | st.binary(max_size=40))
def test_images(content):
    record = make_record(1, "a", content, (0, 0), [], [], [], [])
    pixels = accepts(decode, record, 1.0)
    if pixels is not None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert pixels.size <= 3e6


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    return tmp_path_factory.mktemp("pth") / "m.pth"


INSTRUCTIONS = st.sampled_from(
    [b"}", b"(", b")", b"]", b"s", b"u", b"a", b"e", b"0", b"1", b"2", b"N", b"K\x01", b"\x85",
     b"\x86", b"\x87", b"q\x00", b"h\x00", b"r\xff\xff\xff\xff", b"\x94", b"R", b"b", b"Q", b"t",
     b"X\x01\x00\x00\x00a", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"\x93",
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"X\x07\x00\x00\x00storage", b"J\xff\xff\xff\xff",
     b"ctorch\nSize\n", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"G\x7f\xf0" + bytes(6),
     b"cos\nsystem\n", b"\x81", b"o", b"\x82\x01", b"\x80\x02", b"I01\n", b"P1\n", b"d", b"l"]
)  # fmt: skip


@fuzz
@given(st.lists(INSTRUCTIONS, max_size=25).map(b"".join) | st.binary(max_size=40))
@example(b"}" + b")q\x00" + b"h\x00\x86q\x00" * 200)
def test_pickles(pth, instructions):
    state = accepts(read_state_dict, archive(pth, instructions + b".", {"a": bytes(8)}))
    assert state is None or all(isinstance(array, np.ndarray) for array in state.values())


def test_archives(torch, pth):  # noqa: F811
    shared = tensor("0", np.arange(12).reshape(3, 4))
    whole = save(pth, {"a": shared, "b": TensorStub(shared.arguments[0], (2, 2), (4, 1), 1)})
    original = whole.read_bytes()

    @fuzz
    @given(st.data())
    def run(data):
        raw = bytearray(original)
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        pth.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
        state = accepts(read_state_dict, pth)
        assert state is None or sum(array.size for array in state.values()) <= 16

    run()


HEADER_PARTS = st.sampled_from(
    ["{", "}", "'descr'", ":", "'<f4'", "'|O'", "'|V9'", ",", "'fortran_order'", "False", "True",
     "'shape'", "(2,)", "(", ")", "2", "-1", "()", "[('a', '<f4')]", "2L", "\n", "\\", "'", "None",
     "1e9", "0", " "]
)  # fmt: skip
SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@fuzz
@given(
    st.lists(HEADER_PARTS, max_size=20).map("".join)
    | st.sampled_from([SOUND.replace("(2,)", s) for s in ("(2, 1)", "(-1,)", "(2**9,)", "(0, 9)")])
    | st.text(max_size=20),
    st.binary(max_size=9),
    st.sampled_from([b"\x93NUMPY\x01\0", b"\x93NUMPY\x02\0", b"\x93NUMPY\x03\0", b"PK", b""]),
)
@example(SOUND, bytes(8), b"\x93NUMPY\x01\0")
@example(SOUND.replace("<f4", "|S0"), b"", b"\x93NUMPY\x01\0")
@example("(" * 9000, b"", b"\x93NUMPY\x01\0")
@example(SOUND.replace("2,", "0," * 70), b"", b"\x93NUMPY\x01\0")
def test_arrays(pth, header, content, magic):
    line = header.encode(errors="ignore")
    path = pth.with_suffix(".npz")
    length = len(line).to_bytes(4 if magic[6:7] == b"\x02" else 2, "little")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", magic + length + line + content)
    arrays = accepts(read_npz, path)
    assert arrays is None or sum(array.nbytes for array in arrays.values()) <= len(content)


SOUND_CONFIG = json.loads(configs.to_json(configs.Config()))


@st.composite
def config_values(draw):
    """A config of which a few fields, at any depth, are anything."""
    values = copy.deepcopy(SOUND_CONFIG)
    for _ in range(draw(st.integers(0, 3))):
        inner = values
        while True:
            key = draw(st.sampled_from(sorted(inner) or ["name"]))
            if not isinstance(inner.get(key), dict) or not draw(st.integers(0, 6)):
                break
            inner = inner[key]
        inner[key] = draw(JSON | st.lists(SCALARS, min_size=2, max_size=3))
    return values


def checked(text):
    config = configs.from_json(text)
    configs.check(config)
    return config


@fuzz
@given(config_values() | JSON)
@example(SOUND_CONFIG | {"input_size": [10**400, 32]})
@example(SOUND_CONFIG | {"name": "\ud800"})
def test_configs(values):
    text = json.dumps(values)
    config = accepts(checked, text)
    if config is not None:
        assert configs.from_json(configs.to_json(config)) == config
    for about in ({"config": values, "class_names": ["a"]}, values):
        accepts(read_description, json.dumps(about), "about.json")


@fuzz
@given(st.text(max_size=50))
@example("[" * 100_000)
@example("9" * 5000)
def test_configs_of_any_text(text):
    assert accepts(checked, text) is None
    assert accepts(read_description, text, "about.json") is None

"""Layouts of YOLO datasets: forms of data.yaml, and paths that are allowed or rejected."""

import shutil
import time
from pathlib import Path

import pytest

from configs import voc, yolo
from nanodet_jax.config import Config, check
from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError
from tests.builders import YOLO_LINE, write_yolo, write_yolo_image, yolo_faults

A, B = "images/train/a.png", "images/train/b.png"


@pytest.fixture
def root(tmp_path):
    return write_yolo(tmp_path)


def names(root: Path, split: str = "train", **options) -> list[str]:
    return [record.name for record in YoloSource(root, split, **options)]


def test_yolo_label_file_without_an_image_is_a_tolerated_fault(root):
    for name in ("b.txt", "classes.txt", "._a.txt", "notes.md"):
        (root / "labels/train" / name).write_text("")
    assert [(str(fault), fault.tolerated) for fault in yolo_faults(root)] == [
        (f"{root}/labels/train/b.txt: labels without an image in {root}/images/train", True)
    ]
    (root / "train.txt").write_text("images/train/a.png")  # a list may omit images
    (root / "data.yaml").write_text("{train: train.txt, names: [cat, dog]}")
    assert yolo_faults(root) == []


LAYOUTS = {
    "a folder above": ("train: images", [A]),
    "the folder of the yaml": ("train: .", [A, "more/images/c.png"]),
    "path: .": ("{path: ., train: images/train}", [A]),
    "path": ("{path: images, train: train}", [A]),
    "no path": ("{path: , train: images/train}", [A]),
    "path of another machine": ("{path: /home/someone/data, train: images/train}", [A]),
    "path beside": ("{path: ../other, train: images/train}", [A]),
    "path to the folder itself": ("{path: ../data, train: images/train}", [A]),
    "path above": ("{path: .., train: data/images/train}", [A]),
    "absolute, inside": ("{path: ROOT, train: images/train}", [A]),
    "absolute split, inside": ("{path: /nowhere, train: ROOT/images/train}", [A]),
    "roboflow": ("train: ../images/train", [A]),
    "roboflow with a path": ("{path: images, train: ../train}", [A]),
    "a list of folders": ("train: [images/train, ./images/train/, more/images]",
                          [A, "more/images/c.png"]),
    "a folder twice": ("train: [images, images/train]", [A]),
    "a list of images": ("train: lists/of yaml.txt", [A]),
    "a list of images beside itself": ("train: images/beside.txt", [A]),
    "a list of absolute paths": ("train: absolute.txt", [A]),
    "a list and a folder": ("train: [absolute.txt, more]", [A, "more/images/c.png"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_paths_of_a_split_are_resolved(layout, root):
    text, found = LAYOUTS[layout]
    write_yolo_image(root, "more/images/c.png")
    (root / "lists").mkdir()
    (root / "lists/of yaml.txt").write_text(f"\n./{A}\n\n{A}\r\n")
    (root / "images/beside.txt").write_text("\ufeff./train/a.png\n")
    (root / "absolute.txt").write_text(f"{root}/{A}\n")
    body = text.strip("{}").replace("ROOT", str(root))
    (root / "data.yaml").write_text(f"{{{body}, names: [cat, dog]}}")
    source = YoloSource(root, "train")
    assert [record.name for record in source] == found
    assert all(record.labels.tolist() == [1] for record in source)
    assert names(root / "data.yaml") == found


def test_yolo_export_of_roboflow_is_read(tmp_path):
    for split in ("train", "valid"):
        write_yolo_image(tmp_path, f"{split}/images/{split}_jpg.rf.0a1b.jpg")
    (tmp_path / "README.roboflow.txt").write_text("exported")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        "nc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: mine\n  version: 1\n"
    )
    for split, folder in (("train", "train"), ("val", "valid")):
        [record] = YoloSource(tmp_path, split)
        assert record.name == f"{folder}/images/{folder}_jpg.rf.0a1b.jpg"
        assert record.labels.tolist() == [1]


def test_yolo_label_path_replaces_the_last_folder_images(tmp_path):
    write_yolo_image(tmp_path, "images/x/deep/a.png", None)
    write_yolo_image(tmp_path, "images/x/images/b.png", None)
    write_yolo_image(tmp_path, "my_images/c.png", None)
    for name in ("labels/x/deep/a.txt", "images/x/labels/b.txt", "my_images/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(YOLO_LINE)
    (tmp_path / "data.yaml").write_text("{train: ., names: [cat, dog]}")
    assert [len(record.boxes) for record in YoloSource(tmp_path, "train")] == [1, 1, 1]


LEAVING = {
    "up": ("train: ../other/images/train", "does not exist below .*data, the only place"),
    "twice up": ("train: ../../other", "'../../other' points outside the folder .*data; move"),
    "absolute": ("train: /etc", "'/etc' points outside the folder"),
    "with its path": ("{path: ../other, train: ../images/b}", "does not exist below"),
    "inside and out": ("train: images/../../../other", "points outside the folder"),
    "gone": ("train: images/gone", "'images/gone' does not exist below"),
    "a file": ("train: images/train/a.png", "is neither a folder nor a .txt list"),
    "a link": ("train: link", "the symbolic link .*data/link points outside"),
    "a link on the way": ("train: link/images", "the symbolic link .*data/link points outside"),
    "a circle": ("train: circle", "the symbolic link .*circle is circular"),
    "a drive": ("train: 'C:\\data'", "points outside the folder"),
    "no images": ("train: labels", r"train: no images found \(\.jpg, "),
    "a list": ("train: list.txt", r"list\.txt: line 2: '../../../x.png' points outside"),
}


@pytest.mark.parametrize("case", LEAVING)
def test_yolo_path_out_of_the_folder_or_to_nothing_is_an_error(case, root):
    text, message = LEAVING[case]
    (root / "link").symlink_to("../other")
    (root / "circle").symlink_to("circle")
    (root / "list.txt").write_text(f"{A}\n../../../x.png\n")
    (root / "data.yaml").write_text(f"{{{text.strip('{}')}, names: [cat, dog]}}")
    with pytest.raises(UserError, match=rf"(data\.yaml: train: .*|^.*){message}") as error:
        YoloSource(root, "train")
    assert "\n" not in str(error.value)


def test_yolo_file_behind_a_link_is_read_only_with_follow_links(root, tmp_path):
    store = tmp_path / "other"
    (root / "images/train/b.png").symlink_to(store / "images/train/b.png")
    with pytest.raises(Fault, match=r"data\.yaml: train: .*link .*b\.png points outside"):
        YoloSource(root, "train")
    (root / "labels/train/b.txt").symlink_to(store / "labels/train/b.txt")
    assert [fault.kind for fault in yolo_faults(root)] == [FaultKind.PATH]
    assert names(root, follow_links=True) == [A, B]
    (root / "labels/more").symlink_to(store)
    write_yolo_image(root, "images/more/c.png", None)
    assert [fault.kind for fault in yolo_faults(root)] == [FaultKind.PATH]  # nothing about store
    shutil.rmtree(root / "images/more")
    (root / "images/train/b.png").unlink()
    write_yolo_image(root, B, None)
    with pytest.raises(Fault, match=r"image .*b\.png: the symbolic link .*b\.txt points outside"):
        YoloSource(root, "train")
    (root / "data.yaml").rename(store / "data.yaml")
    (root / "data.yaml").symlink_to(store / "data.yaml")
    with pytest.raises(Fault, match=r"the symbolic link .*data\.yaml points outside"):
        YoloSource(root, "train")


YAMLS = {
    "no yaml": ("train: [", r"invalid yaml at line 1, column 9"),
    "tabs": ("train:\n\timages", "invalid yaml at line 2"),
    "list": ("[train]", "not a YOLO data.yaml; write, for example, {train: images/train"),
    "nothing": ("", "not a YOLO data.yaml"),
    "code": ("train: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    "bad date": ("train: 2020-99-99", "not yaml: ValueError"),
    "odd conversion": ("train: !!int ''", "not yaml: "),
    "depth": ("[" * 9999, "not yaml: RecursionError"),
    "digits": ("nc: " + "9" * 5000, "not yaml: ValueError"),
    "bytes": ("\ud800", "not yaml: .*invalid"),
    "no split": ("names: [cat]", "has no train; use a folder of images"),
    "split of numbers": ("{train: 3, names: [cat]}", "train is 3; use a folder"),
    "split of lists": ("{train: [[images]], names: [cat]}", r"train is \[\['images'\]\]; use a"),
    "path": ("{path: 3, train: images, names: [cat]}", "path is 3, not a string"),
    "no names": ("train: images", "`names` must be a list of the classes"),
    "empty names": ("{train: images, names: []}", "`names` must be a list"),
    "names as text": ("{train: images, names: cat}", "`names` must be a list"),
    "yes": ("{train: images, names: [helmet, no]}", "1 is False, not a printable string; quote"),
    "a number": ("{train: images, names: {0: 1}}", "class 0 is 1, not a printable string"),
    "keys": ("{train: images, names: {1: cat, 2: dog}}", "keys of names must be 0 to 1, each once"),
    "true for 1": ("{train: images, names: {0: cat, true: dog}}", "keys of names"),
    "nc": ("{train: images, nc: 3, names: [cat]}", "nc is 3, but there are 1 names"),
    "nc as text": ("{train: images, nc: '1', names: [cat]}", "nc is '1'"),
    "half a character": ('{train: images, names: ["\\ud800"]}', "class 0 is .*not a printable"),
    "poses": (
        "{train: images, kpt_shape: [17, 3], names: [cat]}",
        "kpt_shape: pose labels",
    ),
}


@pytest.mark.parametrize("case", YAMLS)
def test_yolo_data_yaml_that_is_invalid_is_an_error(case, root):
    text, message = YAMLS[case]
    (root / "data.yaml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=rf"data\.yaml: .*{message}") as error:
        YoloSource(root, "train")
    assert "\n" not in str(error.value)


def test_yolo_yaml_aliases_are_rejected_before_they_expand(root):
    """Nested merges would expand to 10^8 entries."""
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)]
    (root / "data.yaml").write_text("\n".join([*lines, "train: images", "names: [cat]"]))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"line 2, column 15: aliases \(\*\) are not allowed"):
        YoloSource(root, "train")
    assert time.monotonic() - start < 1


def test_yolo_names_given_by_number_are_sorted(root):
    (root / "data.yaml").write_text("train: images\nnames:\n  1: dog\n  0: cat\n  2: 'no'\nnc: 3\n")
    assert [c.name for c in YoloSource(root, "train").categories] == ["cat", "dog", "no"]


def test_yolo_config_is_that_of_voc_with_another_format(root):
    config = yolo.get_config("nanodet-plus-m")
    assert (config.name, config.data.format) == ("yolo-plus", "yolo")
    config.data.root = str(root)
    check(config)
    assert len(open_source(config, "train")) == 1
    config.data.format, config.data.root, config.name = "voc", "", "voc-plus"
    assert config == voc.get_config("nanodet-plus-m")


def test_yolo_root_may_be_another_yaml_file_but_not_missing(root):
    (root / "data.yaml").rename(root / "coco.yml")
    with pytest.raises(UserError, match=r"data: no data\.yaml in this folder; .* \{train"):
        YoloSource(root, "train")
    with pytest.raises(UserError, match=r"data\.yaml: folder is missing"):
        YoloSource(root / "data.yaml", "train")
    assert names(root / "coco.yml") == [A]
    config = Config()
    config.data.format, config.data.root = "yolo", str(root / "coco.yml")
    assert open_source(config, "train")[0].name == A
    config.data.classes = ("dog",)
    assert open_source(config, "train")[0].labels.tolist() == [0]
    config.data.classes = ("cwo",)
    with pytest.raises(UserError, match=r"config\.data\.classes: 'cwo' does not occur"):
        open_source(config, "train")

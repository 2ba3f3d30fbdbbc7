"""A data.yaml in all its forms, what it reaches, and what it may not reach."""

import shutil
import time
from pathlib import Path

import pytest

from configs import voc, yolo
from nanodet_jax.config import Config, check
from nanodet_jax.data.faults import Fault, Kind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError
from tests.data.sources.yolo_files import LINE, faults, write, write_set

A, B = "images/train/a.png", "images/train/b.png"


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path)


def names(root: Path, split: str = "train", **options) -> list[str]:
    return [record.name for record in YoloSource(root, split, **options)]


def test_labels_without_an_image_are_told_of(root):
    for name in ("b.txt", "classes.txt", "._a.txt", "notes.md"):
        (root / "labels/train" / name).write_text("")
    assert [(str(fault), fault.tolerated) for fault in faults(root)] == [
        (f"{root}/labels/train/b.txt: labels of no image in {root}/images/train", True)
    ]
    (root / "train.txt").write_text("images/train/a.png")  # a list may leave out what it likes
    (root / "data.yaml").write_text("{train: train.txt, names: [cat, dog]}")
    assert faults(root) == []


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
def test_layouts(layout, root):
    text, found = LAYOUTS[layout]
    write(root, "more/images/c.png")
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


def test_an_export_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path, f"{split}/images/{split}_jpg.rf.0a1b.jpg")
    (tmp_path / "README.roboflow.txt").write_text("exported")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        "nc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: mine\n  version: 1\n"
    )
    for split, folder in (("train", "train"), ("val", "valid")):
        [record] = YoloSource(tmp_path, split)
        assert record.name == f"{folder}/images/{folder}_jpg.rf.0a1b.jpg"
        assert record.labels.tolist() == [1]


def test_the_last_images_becomes_labels_and_others_stay(tmp_path):
    write(tmp_path, "images/x/deep/a.png", None)
    write(tmp_path, "images/x/images/b.png", None)
    write(tmp_path, "my_images/c.png", None)
    for name in ("labels/x/deep/a.txt", "images/x/labels/b.txt", "my_images/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LINE)
    (tmp_path / "data.yaml").write_text("{train: ., names: [cat, dog]}")
    assert [len(record.boxes) for record in YoloSource(tmp_path, "train")] == [1, 1, 1]


LEAVING = {
    "up": ("train: ../other/images/train", "is not there; it is looked for below .*data alone"),
    "twice up": ("train: ../../other", "'../../other' is a path out of the folder .*data; put"),
    "absolute": ("train: /etc", "'/etc' is a path out of the folder"),
    "with its path": ("{path: ../other, train: ../images/b}", "is not there"),
    "inside and out": ("train: images/../../../other", "is a path out of the folder"),
    "gone": ("train: images/gone", "'images/gone' is not there"),
    "a file": ("train: images/train/a.png", "is neither a folder nor a .txt list"),
    "a link": ("train: link", "the symbolic link .*data/link leads out of"),
    "a link on the way": ("train: link/images", "the symbolic link .*data/link leads out of"),
    "a circle": ("train: circle", "the symbolic link .*circle goes in a circle"),
    "a drive": ("train: 'C:\\data'", "is a path out of the folder"),
    "no images": ("train: labels", r"train: no images \(\.jpg, "),
    "a list": ("train: list.txt", r"list\.txt: line 2: '../../../x.png' is a path out of"),
}


@pytest.mark.parametrize("case", LEAVING)
def test_what_leads_out_or_nowhere_is_refused(case, root):
    text, message = LEAVING[case]
    (root / "link").symlink_to("../other")
    (root / "circle").symlink_to("circle")
    (root / "list.txt").write_text(f"{A}\n../../../x.png\n")
    (root / "data.yaml").write_text(f"{{{text.strip('{}')}, names: [cat, dog]}}")
    with pytest.raises(UserError, match=rf"(data\.yaml: train: .*|^.*){message}") as error:
        YoloSource(root, "train")
    assert "\n" not in str(error.value)


def test_links_of_single_files(root, tmp_path):
    store = tmp_path / "other"
    (root / "images/train/b.png").symlink_to(store / "images/train/b.png")
    with pytest.raises(Fault, match=r"data\.yaml: train: the symbolic link .*b\.png leads out"):
        YoloSource(root, "train")
    (root / "labels/train/b.txt").symlink_to(store / "labels/train/b.txt")
    assert [fault.kind for fault in faults(root)] == [Kind.PATH]
    assert names(root, follow_links=True) == [A, B]
    (root / "labels/more").symlink_to(store)
    write(root, "images/more/c.png", None)
    assert [fault.kind for fault in faults(root)] == [Kind.PATH]  # of store nothing is told
    shutil.rmtree(root / "images/more")
    (root / "images/train/b.png").unlink()
    write(root, B, None)
    with pytest.raises(Fault, match=r"image .*b\.png: the symbolic link .*b\.txt leads out"):
        YoloSource(root, "train")
    (root / "data.yaml").rename(store / "data.yaml")
    (root / "data.yaml").symlink_to(store / "data.yaml")
    with pytest.raises(Fault, match=r"the symbolic link .*data\.yaml leads out"):
        YoloSource(root, "train")


YAMLS = {
    "no yaml": ("train: [", r"broken yaml at line 1, column 9"),
    "tabs": ("train:\n\timages", "broken yaml at line 2"),
    "list": ("[train]", "no data.yaml of YOLO, which is such as {train: images/train"),
    "nothing": ("", "no data.yaml of YOLO"),
    "code": ("train: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    "bad date": ("train: 2020-99-99", "no yaml: ValueError"),
    "odd conversion": ("train: !!int ''", "no yaml: "),
    "depth": ("[" * 9999, "no yaml: RecursionError"),
    "digits": ("nc: " + "9" * 5000, "no yaml: ValueError"),
    "bytes": ("\ud800", "no yaml: .*invalid"),
    "no split": ("names: [cat]", "has no train; give a folder of images"),
    "split of numbers": ("{train: 3, names: [cat]}", "train is 3; give a folder"),
    "split of lists": ("{train: [[images]], names: [cat]}", r"train is \[\['images'\]\]; give a"),
    "path": ("{path: 3, train: images, names: [cat]}", "path is 3, no text"),
    "no names": ("train: images", "needs names, a list of the classes"),
    "empty names": ("{train: images, names: []}", "needs names"),
    "names as text": ("{train: images, names: cat}", "needs names"),
    "yes": ("{train: images, names: [helmet, no]}", "class 1 is False, no text; put it in quotes"),
    "a number": ("{train: images, names: {0: 1}}", "class 0 is 1, no text"),
    "keys": ("{train: images, names: {1: cat, 2: dog}}", "keys of names are not 0 to 1, each once"),
    "true for 1": ("{train: images, names: {0: cat, true: dog}}", "keys of names"),
    "nc": ("{train: images, nc: 3, names: [cat]}", "nc is 3, but there are 1 names"),
    "nc as text": ("{train: images, nc: '1', names: [cat]}", "nc is '1'"),
    "half a character": ('{train: images, names: ["\\ud800"]}', "class 0 is .*no text"),
    "poses": ("{train: images, kpt_shape: [17, 3], names: [cat]}", "kpt_shape: labels of poses"),
}


@pytest.mark.parametrize("case", YAMLS)
def test_a_data_yaml_that_cannot_be_used(case, root):
    text, message = YAMLS[case]
    (root / "data.yaml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=rf"data\.yaml: .*{message}") as error:
        YoloSource(root, "train")
    assert "\n" not in str(error.value)


def test_references_are_refused_before_they_grow(root):
    """Merged lists of merged lists would be ten to the eighth entries."""
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)]
    (root / "data.yaml").write_text("\n".join([*lines, "train: images", "names: [cat]"]))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"line 2, column 15: references \(\*\) are refused"):
        YoloSource(root, "train")
    assert time.monotonic() - start < 1


def test_names_as_numbered_entries(root):
    (root / "data.yaml").write_text("train: images\nnames:\n  1: dog\n  0: cat\n  2: 'no'\nnc: 3\n")
    assert [c.name for c in YoloSource(root, "train").categories] == ["cat", "dog", "no"]


def test_the_config_opens_it_with_the_recipe_of_voc(root):
    config = yolo.get_config("nanodet-plus-m")
    assert (config.name, config.data.format) == ("yolo-plus", "yolo")
    config.data.root = str(root)
    check(config)
    assert len(open_source(config, "train")) == 1
    config.data.format, config.data.root, config.name = "voc", "", "voc-plus"
    assert config == voc.get_config("nanodet-plus-m")


def test_missing_yaml_and_what_a_config_says(root):
    (root / "data.yaml").rename(root / "coco.yml")
    with pytest.raises(UserError, match=r"data: no data\.yaml lies there; write one, such as \{tr"):
        YoloSource(root, "train")
    with pytest.raises(UserError, match=r"data\.yaml: folder is missing"):
        YoloSource(root / "data.yaml", "train")
    assert names(root / "coco.yml") == [A]
    config = Config()
    config.data.format, config.data.root = "yolo", str(root / "coco.yml")
    assert open_source(config, "train")[0].name == A
    config.data.classes = ("cat",)
    with pytest.raises(UserError, match=r"config\.data\.classes: .*data\.yaml has the names"):
        open_source(config, "train")

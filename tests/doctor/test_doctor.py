"""A folder of drawn images, sound and spoiled in known ways, through the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.cli.main import main
from nanodet_jax.data.faults import Kind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.doctor.report import brief

COUNTS = {"train": 24, "val": 8}
SHARED = Path(__file__).parents[3] / "shared" / "data"
CONFIG = """
from nanodet_jax.config import Config, Data, Training
def get_config():
    return Config(
        name="drawn",
        input_size=(320, 320),
        data=Data(format="{format}", batch_size=4, {paths}),
        training=Training(epochs=10, warmup_steps=5, eval_every=5),
    )
"""


class Drawn:
    """Shapes as COCO has them, in a folder, to be spoiled before they are written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.content = {}
        for split, count in COUNTS.items():
            source = ShapesSource(split, 160, count)
            self.content[split] = source.ground_truth()
            (folder / split).mkdir()
            for record in source:
                pixels = np.ascontiguousarray(record.image[..., ::-1])
                Image.fromarray(pixels).save(folder / split / record.name)
        paths = ", ".join(
            f"{split}_images={str(folder / split)!r}, "
            f"{split}_annotations={str(folder / f'{split}.json')!r}"
            for split in COUNTS
        )
        self.config = folder / "config.py"
        self.config.write_text(CONFIG.format(format="coco", paths=paths))

    def image(self, index: int) -> Path:
        return self.folder / "train" / self.content["train"]["images"][index]["file_name"]

    def annotation(self, index: int) -> dict:
        return self.content["train"]["annotations"][index]

    def write(self) -> None:
        for split, content in self.content.items():
            (self.folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture
def drawn(tmp_path):
    return Drawn(tmp_path)


@pytest.fixture
def doctor(drawn, capsys):
    def run(*flags: str) -> tuple[int, str]:
        drawn.write()
        before = state(drawn.folder)
        code = main(["doctor", str(drawn.config), *flags])
        assert state(drawn.folder) == before, "the user's folder was written to"
        return code, capsys.readouterr().out

    return run


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def truncate(drawn):
    drawn.image(0).write_bytes(drawn.image(0).read_bytes()[:2000])


def another_size(drawn):
    Image.new("RGB", (160, 150)).save(drawn.image(2))


def set_box(index, change):
    def spoil(drawn):
        box = drawn.annotation(index)["bbox"]
        box[:] = change(box)

    return spoil


def again(drawn):
    twin = drawn.annotation(4) | {"id": 9001}
    drawn.content["train"]["annotations"].append(twin)


# Ten ways to spoil a folder: how, the kind, and what the report must name.
SPOILED = {
    "truncated": (truncate, Kind.UNREADABLE, "shapes-train-000000.png (image 1): image is trunc"),
    "missing": (lambda d: d.image(1).unlink(), Kind.MISSING, "'shapes-train-000001.png' of image"),
    "another size": (another_size, Kind.SIZE, "(image 3): is 160x150 but annotated as 160x160"),
    "nan": (set_box(0, lambda box: [float("nan"), *box[1:]]), Kind.NUMBERS, "annotation 1 "),
    "inverted": (set_box(1, lambda b: [*b[:2], -b[2], b[3]]), Kind.INVERTED, "annotation 2 "),
    "outside": (
        set_box(2, lambda box: [150, 150, 40, 40]),
        Kind.OUTSIDE,
        "box [150, 150, 190, 190] leaves the image of 160x160",
    ),
    "no area": (set_box(3, lambda box: [*box[:2], 0, 9]), Kind.EMPTY, "annotation 4 "),
    "twice": (again, Kind.DUPLICATES, "of one class occurs 2 times"),
    "unknown class": (
        lambda d: d.annotation(5).update(category_id=77),
        Kind.CLASSES,
        "unknown category id 77; list it under 'categories'",
    ),
    "one id for two": (
        lambda d: d.content["train"]["images"][7].update(id=9),
        Kind.IDS,
        "image id 9 occurs twice",
    ),
}


def test_a_sound_folder(doctor):
    code, said = doctor()
    assert code == 0
    assert "drawn: 24 training and 8 validation images, 4 classes; 6 steps of 4 images" in said
    assert "SERIOUS" not in said and not any(kind in said for kind in Kind)


@pytest.fixture
def spoiled(drawn):
    """All ten at once, on images that no two of them share."""
    for position, place in enumerate((3, 4, 5, 6, 8, 10)):  # their annotations go elsewhere
        drawn.annotation(position)["image_id"] = place + 1
    for spoil, _, _ in SPOILED.values():
        spoil(drawn)
    return drawn


def test_all_ten_at_once(spoiled, doctor):
    code, said = doctor()
    assert code == 1
    missed = [way for way, (_, kind, _) in SPOILED.items() if f"* {kind} in train: " not in said]
    assert missed == []


@pytest.mark.parametrize("way", SPOILED)
def test_each_of_ten(way, drawn, doctor):
    spoil, kind, named = SPOILED[way]
    spoil(drawn)
    code, said = doctor()
    found = [line for line in said.splitlines() if any(f"* {k} in " in line for k in Kind)]
    if way == "one id for two":  # whose annotations then have no image
        assert len(found) == 1
    else:
        assert found == [f"  * {kind} in train: 1"]
    assert f"* {kind} in train: " in said
    assert named in said
    tolerated = kind in (Kind.OUTSIDE, Kind.EMPTY, Kind.DUPLICATES)
    assert code == (0 if tolerated else 1)
    assert ("SERIOUS" in said) != tolerated


def test_ranked_by_harm_with_ways_out(spoiled, doctor):
    _, said = doctor("--config.training.warmup_steps=50", "--config.training.epochs=10")
    serious, costly = said.index("SERIOUS"), said.index("COSTLY")
    assert serious < said.index("-> --config.training.warmup_steps=") < costly
    assert serious < said.index(Kind.SIZE) < costly < said.index(Kind.OUTSIDE)
    findings = said[: said.index("drawn: ")]
    assert findings.count("  * ") == findings.count("    -> ") > 10


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--config.training.warmup_steps=60"], 1, "the warm-up takes 60 of the run's 60 steps"),
        (["--config.training.warmup_steps=20"], 0, "the warm-up takes 20 of the run's 60 steps"),
        (["--config.data.batch_size=25"], 1, "there are 24 training images"),
        (["--config.input_size=64,64"], 0, "is small at the input of 64 x 64: half of its"),
        (["--config.data.train_images=/nowhere"], 1, "/nowhere: folder of images is missing"),
        (["--config.data.format=voc"], 1, "config.data.root is empty"),
    ],
)
def test_flags_and_what_the_schedule_does(flags, code, named, doctor):
    assert (lambda found: (found[0], named in found[1]))(doctor(*flags)) == (code, True)


@pytest.mark.parametrize("flag", ["--config.data.batchsize=3", "--nope", "nope"])
def test_bad_flags_are_one_line(flag, drawn, capsys):
    try:
        code = main(["doctor", str(drawn.config), flag])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


def test_classes_without_boxes(drawn, doctor):
    train = drawn.content["train"]
    train["annotations"] = [item for item in train["annotations"] if item["category_id"] != 3]
    code, said = doctor()
    assert code == 1
    assert "1 of 4 classes have no training box: square; evaluation asks for square" in said


def test_images_without_boxes(drawn, doctor):
    train = drawn.content["train"]
    train["annotations"] = [item for item in train["annotations"] if item["image_id"] <= 6]
    _, said = doctor()
    assert "18 of 24 images in train have no box" in said
    train["annotations"] = []
    code, said = doctor()
    assert code == 1
    assert "24 of 24 images in train have no box" in said


def test_in_brief_before_a_run(drawn):
    """From annotations alone: the images hold nothing."""
    train = drawn.content["train"]
    train["annotations"] = [item for item in train["annotations"] if item["category_id"] != 3]
    drawn.write()
    for record in train["images"]:
        (drawn.folder / "train" / record["file_name"]).write_bytes(b"")

    def lines(*flags):
        config = load_config(str(drawn.config), flags)
        return brief(config, *(open_source(config, split) for split in COUNTS))

    absent, rare = lines()
    assert absent.startswith("note: 1 of 4 classes have no training box: square; evaluation asks")
    assert rare.startswith("note: classes of under 50 training boxes: circle (")
    longer = lines("--config.training.warmup_steps=60", "--config.input_size=64,64")
    assert longer[0] == (
        "note: the warm-up takes 60 of the run's 60 steps: the learning rate is never reached "
        "-> --config.training.warmup_steps=3, or more epochs"
    )
    assert longer[1:3] == [absent, rare] and "is small at the input of 64 x 64" in longer[-1]
    assert lines("--config.data.format=shapes") == []


def test_voc(tmp_path, capsys):
    def box(x1, y1, x2, y2, name="cat"):
        sides = "".join(
            f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), (x1, y1, x2, y2))
        )
        return f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"

    for split in ("train", "val"):
        for name in ("images", "annotations"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
        for index in range(4):
            spoiled = split == "train" and index == 0
            boxes = box(20, 20, 60, 60)
            if spoiled:
                boxes += (
                    box(9, 1, 5, 9) + box("nan", 1, 5, 9) + box(-5, 1, 40, 50) + box(3, 3, 3, 9)
                )
                boxes += 2 * box(70, 30, 99, 70) + box(1, 2, 30, 40, name="")
            size = "<size><width>100</width><height>80</height></size>"
            text = f"<annotation>{size}{boxes}</annotation>"
            (tmp_path / "data" / split / "annotations" / f"{index}.xml").write_text(text)
            file = tmp_path / "data" / split / "images" / f"{index}.png"
            Image.new("RGB", (100, 80)).save(file)
    folder = tmp_path / "data" / "train"
    (folder / "images" / "1.png").unlink()
    (folder / "annotations" / "2.xml").write_text("<annotation>")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(format="voc", paths=f"root={str(tmp_path / 'data')!r}"))
    assert main(["doctor", str(config)]) == 1
    said = capsys.readouterr().out
    for kind, named in (
        (Kind.INVERTED, "0.xml: object 2 (cat) has an inverted box"),
        (Kind.NUMBERS, "0.xml: object 3 (cat): bndbox/xmin is 'nan'"),
        (Kind.OUTSIDE, "0.xml: box [-5.0, 1.0, 40.0, 50.0] (cat) leaves the image of 100x80"),
        (Kind.EMPTY, "0.xml: box [3.0, 3.0, 3.0, 9.0] (cat): below a pixel"),
        (Kind.DUPLICATES, "0.png (image 1): box [70, 30, 99, 70] of one class occurs 2 times"),
        (Kind.CLASSES, "0.xml: object 8 has no name"),
        (Kind.MISSING, "1.xml: no image '' or 1.* in"),
        (Kind.FILE, "2.xml: broken xml"),
    ):
        assert f"  * {kind} in train: 1\n" in said
        assert named in said
    assert " in val: " not in said


def test_yolo(tmp_path, capsys):
    """Every kind of fault that its files can have; sizes cannot disagree, and there are no ids."""
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (tmp_path / "data" / name / split).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (100, 80)).save(tmp_path / "data" / "images" / split / f"{index}.png")
            labels = tmp_path / "data" / "labels" / split / f"{index}.txt"
            labels.write_text("0 .4 .5 .4 .5\n")
    spoiled = tmp_path / "data" / "labels" / "train"
    (spoiled / "0.txt").write_text(
        "0 .4 .5 .4 .5\n0 .4 .5 -.01 .5\n0 nan .5 .4 .5\n0 .1 .5 .4 .5\n0 .4 .5 .005 .5\n"
        "1 .4 .5 .4 .5\n0 .8 .5 .2 .5\n0 .8 .5 .2 .5\n"
    )
    (spoiled / "1.txt").write_text("0 ...")
    (spoiled / "4.txt").write_text("")
    (spoiled / "2.txt").unlink()
    (spoiled / "2.txt").symlink_to("/etc/passwd")
    (tmp_path / "data" / "images" / "train" / "3.png").write_bytes(b"")
    (tmp_path / "data" / "data.yaml").write_text(
        "{train: images/train, val: images/val, names: [cat]}"
    )
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(format="yolo", paths=f"root={str(tmp_path / 'data')!r}"))
    assert main(["doctor", str(config)]) == 1
    said = capsys.readouterr().out
    for kind, count, named in (
        (Kind.INVERTED, 1, "0.txt: line 2: '0 .4 .5 -.01 .5' has negative width"),
        (Kind.NUMBERS, 2, "0.txt: line 3: '0 nan .5 .4 .5' has a number that is not finite"),
        (Kind.NUMBERS, 2, "1.txt: line 1: '0 ...' is no line of numbers"),
        (Kind.OUTSIDE, 1, "0.txt: line 4: box [-0.1, 0.25, 0.3, 0.75] leaves the image, and"),
        (Kind.EMPTY, 1, "0.txt: box [39.75, 20.0, 40.25, 60.0] (cat): below a pixel"),
        (Kind.CLASSES, 1, "0.txt: line 6: '1 .4 .5 .4 .5' is of class 1; names"),
        (Kind.DUPLICATES, 1, "0.png (image 1): box [70, 20, 90, 60] of one class occurs 2 times"),
        (Kind.MISSING, 1, "4.txt: labels of no image in"),
        (Kind.PATH, 1, "2.png: the symbolic link"),
        (Kind.UNREADABLE, 1, "3.png (image 4): no image"),
    ):
        assert f"  * {kind} in train: {count}\n" in said
        assert named in said
    assert " in val: " not in said


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="shared/data/bccd is absent")
def test_bccd_is_limited_by_its_small_class(capsys):
    root = Path(__file__).parents[2]
    config = f"--config.data.root={SHARED / 'bccd'}"
    assert main(["doctor", str(root / "configs" / "voc.py"), config]) == 0
    said = capsys.readouterr().out
    assert "class 'Platelets' is small" in said
    assert "class 'RBC'" not in said and "class 'WBC'" not in said

"""The doctor command on datasets without faults and with known ones."""

import json
from pathlib import Path

import pytest

from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.cli.main import main
from nanodet_jax.config import Config, Data
from nanodet_jax.data.faults import FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.doctor.memory import Memory
from nanodet_jax.doctor.report import quick_warnings
from tests.builders import voc_xml, write_image, write_voc_split, write_yolo_image

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
    """Dataset of drawn shapes in COCO format, whose annotations can be changed before writing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.content = {}
        for split, count in COUNTS.items():
            source = ShapesSource(split, 160, count)
            self.content[split] = source.ground_truth()
            for record in source:
                write_image(folder / split / record.name, record.image[..., ::-1].copy())
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
        assert state(drawn.folder) == before, "the doctor wrote to the folder of the user"
        return code, capsys.readouterr().out

    return run


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def truncate(drawn):
    drawn.image(0).write_bytes(drawn.image(0).read_bytes()[:2000])


def another_size(drawn):
    write_image(drawn.image(2), (160, 150))


def set_box(index, change):
    def change_box(drawn):
        box = drawn.annotation(index)["bbox"]
        box[:] = change(box)

    return change_box


def repeat_box(drawn):
    twin = drawn.annotation(4) | {"id": 9001}
    drawn.content["train"]["annotations"].append(twin)


# Ten faults: for each, the change that causes it, its kind, and a part of its message.
CHANGES = {
    "truncated": (
        truncate,
        FaultKind.UNREADABLE,
        "000000.png (image 1): image is truncated",
    ),
    "missing": (
        lambda d: d.image(1).unlink(),
        FaultKind.MISSING,
        "train-000001.png' (image 2)",
    ),
    "another size": (
        another_size,
        FaultKind.SIZE,
        "(image 3): is 160x150 but annotated as 160x1",
    ),
    "nan": (set_box(0, lambda box: [float("nan"), *box[1:]]), FaultKind.NUMBERS, "annotation 1 "),
    "inverted": (set_box(1, lambda b: [*b[:2], -b[2], b[3]]), FaultKind.INVERTED, "annotation 2 "),
    "outside": (
        set_box(2, lambda box: [150, 150, 40, 40]),
        FaultKind.OUTSIDE,
        "box [150, 150, 190, 190] extends beyond the 160x160 image",
    ),
    "no area": (set_box(3, lambda box: [*box[:2], 0, 9]), FaultKind.EMPTY, "annotation 4 "),
    "twice": (repeat_box, FaultKind.DUPLICATES, "occurs 2 times with the same class"),
    "unknown class": (
        lambda d: d.annotation(5).update(category_id=77),
        FaultKind.CLASSES,
        "unknown category id 77; add it to 'categories'",
    ),
    "one id for two": (
        lambda d: d.content["train"]["images"][7].update(id=9),
        FaultKind.IDS,
        "image id 9 occurs twice",
    ),
}


def test_doctor_of_sound_data_finds_nothing_serious(doctor):
    code, output = doctor()
    assert code == 0
    assert "drawn: 24 training and 8 validation images, 4 classes; 6 steps of 4 images" in output
    assert "SERIOUS" not in output and not any(kind in output for kind in FaultKind)


def test_doctor_reports_images_of_both_splits(doctor, drawn):
    for index in (0, 5):
        name = f"shapes-val-{index:06d}.png"
        (drawn.folder / "val" / name).write_bytes(drawn.image(index).read_bytes())
    code, output = doctor("--all")
    assert code == 1
    assert (
        "  * 2 of 8 validation images are also training images: AP is too high\n"
        "      shapes-train-000000.png in train is the same as shapes-val-000000.png in val\n"
        "      shapes-train-000005.png in train is the same as shapes-val-000005.png in val\n"
        "    -> remove them from one of the splits"
    ) in output
    _, brief_output = doctor()
    assert (
        "in train is the same as shapes-val-000000.png in val\n"
        "      and 1 more (--all lists them)\n"
        "    -> remove them from one of the splits"
    ) in brief_output


def test_doctor_of_two_equal_splits_suggests_a_fraction(drawn, doctor):
    folder = drawn.folder
    flags = [f"--config.data.val_images={folder / 'train'}"]
    _, output = doctor(*flags, f"--config.data.val_annotations={folder / 'train.json'}")
    assert "* 24 of 24 validation images are also training images: AP is too high\n" in output
    assert (
        "    -> remove them from one of the splits, or split off new validation images with "
        "--config.data.val_fraction=0.1\n"
    ) in output


def test_doctor_without_a_validation_split_says_so(tmp_path, capsys):
    for index in range(2):
        write_yolo_image(tmp_path / "data", f"images/{index}.png", "0 .4 .5 .4 .5\n")
    (tmp_path / "data" / "classes.txt").write_text("cat\n")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(format="yolo", paths=f"root={str(tmp_path / 'data')!r}"))
    assert main(["doctor", str(config)]) == 1
    fix = (
        "split off some of the training images with --config.data.val_fraction=0.1, or train "
        "without validation with --config.data.val=none"
    )
    file = tmp_path / "data" / "classes.txt"
    assert (
        "  * no validation images\n"
        f"      {file}: has no val; add the folders images/val and labels/val; or {fix}\n"
        f"    -> {fix}\n"
    ) in capsys.readouterr().out


def test_doctor_names_a_class_of_one_split_alone(doctor, drawn):
    for split, name in (("train", "owl"), ("val", "elk")):
        content = drawn.content[split]
        content["categories"].append({"id": 9, "name": name})
        content["annotations"][0]["category_id"] = 9
    code, output = doctor()
    assert code == 1
    assert "no training boxes for 1 of 6 classes: elk; the AP of elk will be 0" in output
    assert "no validation boxes for 1 of 6 classes: owl; AP does not include them" in output
    code, output = doctor("--config.data.merge=elk:star,owl:star")
    assert code == 0
    assert "8 validation images, 4 classes" in output


def test_doctor_without_validation_examines_training_alone(doctor, drawn):
    (drawn.folder / "val").rename(drawn.folder / "away")
    code, output = doctor("--config.data.val=none")
    assert code == 0
    assert "24 training and 0 validation images, 4 classes" in output
    assert "no validation boxes" not in output
    code, output = doctor("--config.data.val_fraction=0.25")
    assert code == 0
    assert "18 training and 6 validation images, 4 classes" in output


@pytest.fixture
def faulty(drawn):
    """Dataset with all ten faults, each on a different image."""
    for position, index in enumerate((3, 4, 5, 6, 8, 10)):  # move their annotations
        drawn.annotation(position)["image_id"] = index + 1
    for change, _, _ in CHANGES.values():
        change(drawn)
    return drawn


def test_doctor_finds_ten_faults_together(faulty, doctor):
    code, output = doctor()
    assert code == 1
    kinds = [kind for _, kind, _ in CHANGES.values()]
    assert [kind for kind in kinds if f"* {kind} in train: " not in output] == []


@pytest.mark.parametrize("fault", CHANGES)
def test_doctor_finds_each_fault_and_nothing_else(fault, drawn, doctor):
    change, kind, named = CHANGES[fault]
    change(drawn)
    code, output = doctor()
    found = [line for line in output.splitlines() if any(f"* {k} in " in line for k in FaultKind)]
    # If two images have one id, the annotations of the other id have no image.
    count = 3 if fault == "one id for two" else 1
    assert found == [f"  * {kind} in train: {count}"]
    assert named in output
    tolerated = kind in (FaultKind.OUTSIDE, FaultKind.EMPTY, FaultKind.DUPLICATES)
    assert code == (0 if tolerated else 1)
    assert ("SERIOUS" in output) != tolerated
    unfixable = (FaultKind.UNREADABLE, FaultKind.NUMBERS, FaultKind.CLASSES)
    assert ("--fix OUT writes corrected copies" in output) == (kind not in unfixable)


def test_doctor_json_is_the_report(drawn, doctor):
    for index in (0, 1):
        set_box(index, lambda box: [150, 150, 40, 40])(drawn)
        drawn.annotation(index)["image_id"] = 5 + index
    truncate(drawn)
    code, output = doctor("--json")
    report = json.loads(output)
    assert code == 1
    assert list(report) == [
        "version", "config", "serious", "findings", "splits", "classes", "memory",
    ]  # fmt: skip
    assert (report["version"], report["config"], report["serious"]) == (1, "drawn", True)
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert report["findings"][0] == found["unreadable"]
    assert (found["unreadable"]["severity"], found["unreadable"]["count"]) == ("serious", 1)
    assert (found["few_boxes"]["severity"], found["few_boxes"]["split"]) == ("costly", "train")
    outside = found["outside"]
    examples = outside.pop("examples")
    assert outside == {
        "severity": "costly",
        "kind": "outside",
        "title": "boxes outside their image in train: 2",
        "fix": "clip the boxes to their image; often they were drawn at another resolution",
        "split": "train",
        "count": 2,
    }
    assert len(examples) == 2 and all("beyond the 160x160 image" in text for text in examples)
    boxes = len(drawn.content["train"]["annotations"])
    assert report["splits"]["train"] == {
        "images": 24, "unreadable": 1, "without_boxes": 1, "boxes": boxes,
    }  # fmt: skip
    assert [size["name"] for size in report["classes"]] == [
        item["name"] for item in drawn.content["train"]["categories"]
    ]
    assert sum(size["train"] for size in report["classes"]) == boxes
    assert set(report["memory"]) == set(Memory._fields)
    assert report["memory"]["cache"] == 23 * 160 * 160 * 3


def test_doctor_json_of_a_config_with_an_error_is_empty(drawn, capsys):
    assert main(["doctor", str(drawn.config), "--json", "--config.data.batch_size=0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "config.data.batch_size=0: must be positive" in captured.err


def test_doctor_sorts_by_severity_and_suggests_fixes(faulty, doctor):
    _, output = doctor("--config.training.warmup_steps=50", "--config.training.epochs=10")
    serious, costly = output.index("SERIOUS"), output.index("COSTLY")
    assert costly < output.index("-> --config.training.warmup_steps=")
    assert serious < output.index(FaultKind.SIZE) < costly < output.index(FaultKind.OUTSIDE)
    findings = output[: output.index("drawn: ")]
    assert findings.count("  * ") == findings.count("    -> ") > 10


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (
            ["--config.training.warmup_steps=60"],
            0,
            "the warm-up takes 60 of the 60 steps",
        ),
        (
            ["--config.training.warmup_steps=50", "--config.training.steps=40"],
            0,
            "  * the warm-up (50 steps) is longer than the run (40 steps): the full learning rate "
            "is never reached\n    -> --config.training.warmup_steps=2, or more steps\n",
        ),
        (
            ["--config.training.warmup_steps=20"],
            0,
            "the warm-up takes 20 of the 60 steps",
        ),
        (
            ["--config.data.batch_size=25"],
            1,
            "batch_size=25 exceeds the number of training images, 24",
        ),
        (["--config.input_size=64,64"], 0, "is small at an input of 64 x 64: half of its"),
        (["--config.data.train_images=/nowhere"], 1, "/nowhere: folder of images is missing"),
        (["--config.data.format=voc"], 1, "config.data.root: is empty"),
    ],
)
def test_doctor_with_flags_finds_faults_of_the_config(flags, code, named, doctor):
    found_code, output = doctor(*flags)
    assert found_code == code and named in output


@pytest.mark.parametrize("flag", ["--config.data.batchsize=3", "--nope", "nope"])
def test_doctor_with_an_unknown_flag_prints_one_line(flag, drawn, capsys):
    try:
        code = main(["doctor", str(drawn.config), flag])
    except SystemExit as exited:
        code = exited.code
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


def test_doctor_finds_a_class_without_training_boxes(drawn, doctor):
    train = drawn.content["train"]
    train["annotations"] = [item for item in train["annotations"] if item["category_id"] != 3]
    code, output = doctor()
    assert code == 1
    assert "no training boxes for 1 of 4 classes: square; the AP of square will be 0" in output


def test_doctor_finds_many_images_without_boxes(drawn, doctor):
    train = drawn.content["train"]
    train["annotations"] = [item for item in train["annotations"] if item["image_id"] <= 6]
    _, output = doctor()
    assert "18 of 24 images in train have no boxes" in output
    train["annotations"] = []
    code, output = doctor()
    assert code == 1
    assert "24 of 24 images in train have no boxes" in output


def test_brief_finds_problems_of_annotations_without_images(drawn):
    """The images are empty files."""
    train = drawn.content["train"]
    train["annotations"] = [item for item in train["annotations"] if item["category_id"] != 3]
    drawn.write()
    for record in train["images"]:
        (drawn.folder / "train" / record["file_name"]).write_bytes(b"")

    def lines(*flags):
        config = load_config(str(drawn.config), flags)
        return quick_warnings(config, *(open_source(config, split) for split in COUNTS))

    absent, rare = lines()
    assert absent.startswith("note: no training boxes for 1 of 4 classes: square; the AP of")
    assert rare.startswith("note: classes with fewer than 50 training boxes: circle (")
    longer = lines("--config.training.warmup_steps=60", "--config.input_size=64,64")
    assert longer[1] == (
        "note: the warm-up takes 60 of the 60 steps of the run: the full learning rate is never "
        "reached -> --config.training.warmup_steps=3, or more epochs"
    )
    assert (longer[0], longer[2]) == (absent, rare)
    assert "is small at an input of 64 x 64" in longer[-1]
    files = ("train_images", "train_annotations", "val_images", "val_annotations")
    no_files = [f"--config.data.{name}=" for name in files]
    assert lines("--config.data.format=shapes", *no_files) == []


def test_doctor_finds_each_kind_of_fault_of_voc(tmp_path, capsys):
    box = ("cat", 20, 20, 60, 60)
    faulty = voc_xml(
        box,
        ("cat", 9, 1, 5, 9),
        ("cat", "nan", 1, 5, 9),
        ("cat", -5, 1, 40, 50),
        ("cat", 3, 3, 3, 9),
        *[("cat", 70, 30, 99, 70)] * 2,
        ("", 1, 2, 30, 40),
    )
    xmls = {str(index): voc_xml(box) for index in range(4)}
    write_voc_split(tmp_path / "data", "train", xmls | {"0": faulty})
    write_voc_split(tmp_path / "data", "val", xmls)
    folder = tmp_path / "data" / "train"
    (folder / "images" / "1.png").unlink()
    (folder / "annotations" / "2.xml").write_text("<annotation>")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(format="voc", paths=f"root={str(tmp_path / 'data')!r}"))
    assert main(["doctor", str(config), "--all"]) == 1
    output = capsys.readouterr().out
    for kind, named in (
        (FaultKind.INVERTED, "0.xml: object 2 (cat) has an inverted box"),
        (FaultKind.NUMBERS, "0.xml: object 3 (cat): bndbox/xmin is 'nan'"),
        (FaultKind.OUTSIDE, "0.xml: box [-5.0, 1.0, 40.0, 50.0] (cat) extends beyond the 100x80"),
        (FaultKind.EMPTY, "0.xml: box [3.0, 3.0, 3.0, 9.0] (cat) is smaller than one pixel"),
        (FaultKind.DUPLICATES, "0.png (image 1): box [70, 30, 99, 70] occurs 2 times with the"),
        (FaultKind.CLASSES, "0.xml: object 8 has no name"),
        (FaultKind.MISSING, "1.xml: no image '' or 1.* in"),
        (FaultKind.FILE, "2.xml: invalid xml"),
    ):
        assert f"  * {kind} in train: 1\n" in output
        assert named in output
    assert " in val: " not in output


def test_doctor_finds_each_kind_of_fault_of_yolo(tmp_path, capsys):
    """All kinds except sizes and ids, which YOLO files do not contain."""
    for split in ("train", "val"):
        for index in range(4):
            name = f"images/{split}/{index}.png"
            write_yolo_image(tmp_path / "data", name, "0 .4 .5 .4 .5\n")
    labels = tmp_path / "data" / "labels" / "train"
    (labels / "0.txt").write_text(
        "0 .4 .5 .4 .5\n0 .4 .5 -.01 .5\n0 nan .5 .4 .5\n0 .1 .5 .4 .5\n0 .4 .5 .005 .5\n"
        "1 .4 .5 .4 .5\n0 .8 .5 .2 .5\n0 .8 .5 .2 .5\n"
    )
    (labels / "1.txt").write_text("0 ...")
    (labels / "4.txt").write_text("")
    (labels / "2.txt").unlink()
    (labels / "2.txt").symlink_to("/etc/passwd")
    (tmp_path / "data" / "images" / "train" / "3.png").write_bytes(b"")
    (tmp_path / "data" / "data.yaml").write_text(
        "{train: images/train, val: images/val, names: [cat]}"
    )
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(format="yolo", paths=f"root={str(tmp_path / 'data')!r}"))
    assert main(["doctor", str(config), "--all"]) == 1
    output = capsys.readouterr().out
    for kind, count, named in (
        (FaultKind.INVERTED, 1, "0.txt: line 2: '0 .4 .5 -.01 .5' has a negative width"),
        (FaultKind.NUMBERS, 2, "0.txt: line 3: '0 nan .5 .4 .5' has a number that is not finite"),
        (FaultKind.NUMBERS, 2, "1.txt: line 1: '0 ...' is not a line of numbers"),
        (FaultKind.OUTSIDE, 1, "0.txt: line 4: box [-0.1, 0.25, 0.3, 0.75] extends beyond"),
        (FaultKind.EMPTY, 1, "0.txt: box [39.75, 20.0, 40.25, 60.0] (cat) is smaller than one"),
        (FaultKind.CLASSES, 1, "0.txt: line 6: '1 .4 .5 .4 .5' has unknown class 1"),
        (FaultKind.DUPLICATES, 1, "0.png (image 1): box [70, 20, 90, 60] occurs 2 times with"),
        (FaultKind.MISSING, 1, "4.txt: labels without an image in"),
        (FaultKind.PATH, 1, "2.png: the symbolic link"),
        (FaultKind.UNREADABLE, 1, "3.png (image 4): not an image"),
    ):
        assert f"  * {kind} in train: {count}\n" in output
        assert named in output
    assert " in val: " not in output


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="shared/data/bccd is absent")
def test_doctor_of_bccd_finds_the_small_class(capsys):
    root = Path(__file__).parents[2]
    config = f"--config.data.root={SHARED / 'bccd'}"
    assert main(["doctor", str(root / "configs" / "voc.py"), config]) == 0
    output = capsys.readouterr().out
    assert "class 'Platelets' is small" in output
    assert "class 'RBC'" not in output and "class 'WBC'" not in output


def test_warnings_before_training_name_a_class_of_one_split_in_yolo(tmp_path):
    write_yolo_image(tmp_path, "images/train/a.png", "0 .5 .5 .5 .5\n1 .5 .5 .5 .5\n")
    write_yolo_image(tmp_path, "images/val/b.png", "0 .5 .5 .5 .5\n2 .5 .5 .5 .5\n")
    yaml = "{train: images/train, val: images/val, names: [cat, dog, owl]}"
    (tmp_path / "data.yaml").write_text(yaml)
    config = Config(data=Data(format="yolo", root=str(tmp_path), batch_size=1))
    config.training.warmup_steps = 0
    notes = quick_warnings(config, *(open_source(config, split) for split in COUNTS))
    assert any("no training boxes for 1 of 3 classes: owl; the AP of owl" in note for note in notes)
    assert any("no validation boxes for 1 of 3 classes: dog" in note for note in notes)
    config.data.val = "none"
    notes = quick_warnings(config, open_source(config, "train"), None)
    assert any("no training boxes for 1 of 3 classes: owl -> add" in note for note in notes)
    assert not any("validation" in note for note in notes)

"""VOC and YOLO datasets in the layouts of other programs, and errors about missing splits."""

import pytest

from nanodet_jax.data.faults import FaultKind
from nanodet_jax.data.sources.voc import VocSource, require_voc_class_names
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError
from tests.builders import voc_xml, write_image, write_voc, write_yolo_image

FIX = (
    "split off some of the training images with --config.data.val_fraction=0.1, or train without "
    "validation with --config.data.val=none"
)


def test_voc_without_lists_has_training_images_alone(tmp_path):
    texts = {"a": voc_xml(("cat", 1, 1, 9, 9)), "b": voc_xml()}
    write_voc(tmp_path / "Annotations", tmp_path / "images", texts)
    assert require_voc_class_names(tmp_path) == ("cat",)
    assert [record.name for record in VocSource(tmp_path, "train", ("cat",))] == ["a.png", "b.png"]
    with pytest.raises(UserError) as caught:
        VocSource(tmp_path, "val", ("cat",))
    assert str(caught.value) == (
        f"{tmp_path}: no VOC annotations for val in this folder, such as ImageSets/Main/val.txt "
        "with Annotations/ and JPEGImages/ (VOC2007), val/annotations/ and val/images/, or xml "
        f"files and images together in val/ (Roboflow); {FIX}"
    )


def test_voc_with_a_list_of_another_split_is_not_read_whole(tmp_path):
    write_voc(tmp_path / "Annotations", tmp_path / "JPEGImages", {"a": voc_xml()})
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"ImageSets/Main/train\.txt .*; set config\.data\.root"):
        VocSource(tmp_path, "train", ("cat",))


@pytest.mark.parametrize(
    "filename", ["C:\\photos\\A b.PNG", "/home/me/A b.PNG", "a B.png", "gone.png", ""]
)
def test_voc_image_is_found_by_the_last_part_of_its_path(filename, tmp_path):
    write_voc(tmp_path / "Annotations", tmp_path / "images", {"a b": voc_xml(filename=filename)})
    (tmp_path / "images" / "a b.png").rename(tmp_path / "images" / "A b.PNG")
    [record] = VocSource(tmp_path, "train", ())
    assert record.name == "A b.PNG"


def test_voc_list_may_have_names_with_spaces_and_folders(tmp_path):
    for name in ("a b", "day 1/c"):
        (tmp_path / "Annotations" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(voc_xml())
        write_image(tmp_path / "JPEGImages" / f"{name}.png", (100, 80))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a b\nday 1/c\n")
    names = [record.name for record in VocSource(tmp_path, "train", ())]
    assert names == ["a b.png", "day 1/c.png"]


def test_yolo_of_label_studio_may_have_split_folders(tmp_path):
    for split in ("train", "valid"):
        write_yolo_image(tmp_path, f"images/{split}/{split}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    for split, name in (("train", "train"), ("val", "valid")):
        [record] = YoloSource(tmp_path, split)
        assert (record.name, record.labels.tolist()) == (f"images/{name}/{name}.png", [1])


def test_yolo_of_labelimg_has_labels_beside_the_images(tmp_path):
    write_yolo_image(tmp_path, "a.png", None)
    (tmp_path / "a.txt").write_text("1 .5 .5 .25 .5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    [record] = YoloSource(tmp_path, "train")
    assert (record.name, record.labels.tolist()) == ("a.png", [1])


@pytest.mark.parametrize(
    ("description", "fix"),
    [
        ("data.yaml", "use a folder of images, such as val: images/val"),
        ("classes.txt", "add the folders images/val and labels/val"),
        ("obj.data", "add the line valid = valid.txt"),
    ],
)
def test_yolo_without_validation_images_says_how_to_get_them(description, fix, tmp_path):
    write_yolo_image(tmp_path, "images/a.png")
    (tmp_path / "obj.names").write_text("cat\n")
    texts = {
        "data.yaml": "{train: images, names: [cat, dog]}",
        "classes.txt": "cat\ndog",
        "obj.data": "train = train.txt\nnames = obj.names",
    }
    (tmp_path / description).write_text(texts[description])
    with pytest.raises(UserError) as caught:
        YoloSource(tmp_path, "val")
    assert str(caught.value) == (f"{tmp_path / description}: has no val; {fix}; or {FIX}")
    assert caught.value.kind is FaultKind.NO_VALIDATION


def test_yolo_description_outside_its_folder_is_not_read(tmp_path):
    root = tmp_path / "data"
    write_yolo_image(root, "images/a.png")
    (tmp_path / "secret").write_text("cat\n")
    (root / "obj.data").write_text("train = images\nnames = ../secret\n")
    with pytest.raises(UserError, match=r"'\.\./secret' points outside the folder"):
        YoloSource(root, "train")


@pytest.mark.parametrize(
    ("path", "train"),
    [
        ("D:\\photos", "images\\train"),
        ("D:/photos", "images/train"),
        ("''", "C:\\Users\\me\\data\\images\\train"),
        ("''", "..\\images\\train"),
    ],
)
def test_yolo_paths_of_windows_are_resolved(path, train, tmp_path):
    write_yolo_image(tmp_path, "images/train/a.png")
    (tmp_path / "data.yaml").write_text(f"path: {path}\ntrain: {train}\nnames: [cat, dog]\n")
    assert [record.name for record in YoloSource(tmp_path, "train")] == ["images/train/a.png"]


@pytest.mark.parametrize(
    ("description", "text", "named"),
    [
        ("data.yaml", "{train: images, names: [cat]}", "`names` in data.yaml"),
        ("classes.txt", "cat\n", "classes.txt"),
        ("obj.data", "train = images\nnames = data/my.names\n", "my.names"),
    ],
)
def test_yolo_class_that_is_unknown_names_the_file_of_the_classes(
    description, text, named, tmp_path
):
    write_yolo_image(tmp_path, "images/a.png", "5 .5 .5 .25 .5\n")
    (tmp_path / "my.names").write_text("cat\n")
    (tmp_path / description).write_text(text)
    with pytest.raises(UserError) as caught:
        YoloSource(tmp_path, "train")
    assert str(caught.value) == (
        f"{tmp_path / 'labels' / 'a.txt'}: line 1: '5 .5 .5 .25 .5' has unknown class 5; "
        f"{named} defines classes 0 to 0"
    )


def test_yolo_folder_of_images_and_labels_needs_a_list_of_classes(tmp_path):
    write_yolo_image(tmp_path / "data", "images/a.png")
    with pytest.raises(UserError) as caught:
        YoloSource(tmp_path / "data", "train")
    assert str(caught.value) == (
        f"{tmp_path / 'data'}: no data.yaml in this folder; write one, for example "
        "{train: images/train, val: images/val, names: [cat, dog]}, or a classes.txt with one "
        "class name per line"
    )

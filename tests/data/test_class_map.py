"""Classes that a config selects, orders, merges or ignores, and classes of one split only."""

from dataclasses import replace

import numpy as np
import pytest

from nanodet_jax.config import Config, Data, check
from nanodet_jax.data.class_map import (
    class_counts,
    class_names,
    match_classes,
    rename_classes,
    select_classes,
)
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import Category, make_record
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.data.sources.voc import VocSource
from nanodet_jax.errors import UserError
from tests.builders import voc_xml, write_voc_split

BOXES = [[0, 0, 9, 9], [1, 1, 8, 8], [2, 2, 7, 7], [3, 3, 6, 6]]


def source(names=("cat", "dog", "cow", "owl"), labels=(0, 1, 2, 1), ignore=(0, 0, 0, 0)):
    """Return a source of one image; category ids are 10, 20 and so on."""
    areas = [81, 49, 25, 9]
    count = len(labels)
    record = make_record(
        7, "a.png", b"", (50, 60), BOXES[:count], labels, ignore[:count], areas[:count]
    )
    return InMemorySource(
        tuple(Category(10 * id, name) for id, name in enumerate(names, 1)), [record]
    )


def select(data, exclude_empty=False, elsewhere=()):
    return select_classes(source(), data, exclude_empty, lambda: elsewhere)


def test_classes_without_a_field_are_those_of_the_same_source():
    one = source()
    assert select_classes(one, Data(), False, list) is one
    assert match_classes(one, one) == (one, one)


def test_classes_filter_and_order_boxes_and_ground_truth():
    found = select(Data(classes=("cow", "cat")))
    assert found.categories == ((30, "cow"), (10, "cat"))
    [record] = found
    np.testing.assert_array_equal(record.boxes, [BOXES[0], BOXES[2]])
    assert (record.labels.tolist(), record.areas.tolist()) == ([1, 0], [81, 25])
    assert (record.labels.dtype, found.num_boxes(0), found.image_size(0)) == (np.int32, 2, (50, 60))
    truth = found.ground_truth()
    assert truth["categories"] == [{"id": 30, "name": "cow"}, {"id": 10, "name": "cat"}]
    assert [item["category_id"] for item in truth["annotations"]] == [10, 30]
    assert [item["area"] for item in truth["annotations"]] == [81, 25]


def test_merged_classes_have_one_label_in_the_place_of_the_first():
    found = select(Data(merge=("dog:pet", "cat:pet")))
    assert found.categories == ((10, "pet"), (30, "cow"), (40, "owl"))
    assert found[0].labels.tolist() == [0, 0, 1, 0]
    assert [i["category_id"] for i in found.ground_truth()["annotations"]] == [10, 10, 30, 10]


def test_ignored_class_becomes_regions_without_a_class():
    found = select(Data(ignore=("dog",)))
    assert class_names(found) == ["cat", "cow", "owl"]
    assert found[0].ignore.tolist() == [False, True, False, True]
    assert found[0].labels[[0, 2]].tolist() == [0, 1]
    assert class_counts(found).tolist() == [1, 1, 0]
    annotations = found.ground_truth()["annotations"]
    regions = [item for item in annotations if item["iscrowd"]]
    # A region of COCO belongs to one class, so each class gets its own.
    assert [item["category_id"] for item in regions] == [10, 30, 40] * 2
    assert [item["bbox"] for item in regions] == [[1, 1, 7, 7]] * 3 + [[3, 3, 3, 3]] * 3
    assert len({item["id"] for item in annotations}) == 8


def test_class_that_is_ignored_may_be_a_merged_one():
    found = select(Data(merge=("dog:odd", "cow:odd"), ignore=("odd",)))
    assert class_names(found) == ["cat", "owl"]
    assert found[0].ignore.tolist() == [False, True, True, True]


def test_classes_without_boxes_are_left_out_on_request():
    assert class_names(select(Data(), exclude_empty=True)) == ["cat", "dog", "cow"]
    found = select(Data(classes=("owl", "dog")), exclude_empty=True)
    assert class_names(found) == ["dog"]
    crowd = source(labels=(3, 0), ignore=(True, False))
    assert class_names(select_classes(crowd, Data(), True, list)) == ["cat"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Data(classes=("cat", "dgo")),
            "config.data.classes: 'dgo' does not occur in the data, whose classes are cat, dog, "
            "cow, owl; did you mean 'dog'?",
        ),
        (
            Data(merge=("Cow:pet",)),
            "config.data.merge: 'Cow' does not occur in the data, whose classes are cat, dog, cow, "
            "owl; did you mean 'cow'?",
        ),
        (
            Data(merge=("cat:pet",), ignore=("cat",)),
            "config.data.ignore: 'cat' does not occur in the data, whose classes are pet, dog, "
            "cow, owl",
        ),
        (
            Data(ignore=("cat", "dog", "cow", "owl")),
            "config.data: excludes all of the classes cat, dog, cow, owl",
        ),
    ],
)
def test_class_that_does_not_occur_is_an_error_with_a_suggestion(data, message):
    with pytest.raises(UserError) as caught:
        select(data)
    assert str(caught.value) == message


def test_class_of_the_other_split_alone_may_be_named():
    data = Data(classes=("cat", "elk"), merge=("deer:elk",), ignore=("bug",))
    found = select(data, elsewhere=("deer", "bug"))
    assert found.categories == ((10, "cat"), (42, "elk"))
    assert found[0].labels.tolist() == [0]


def test_classes_of_both_splits_are_matched_by_name():
    train = source()
    val = source(("dog", "elk", "cat"), labels=(0, 1, 2))
    matched, other = match_classes(train, val)
    assert class_names(matched) == class_names(other) == ["cat", "dog", "cow", "owl", "elk"]
    assert matched[0].labels.tolist() == [0, 1, 2, 1]
    assert other[0].labels.tolist() == [1, 4, 0]
    assert [category.id for category in other.categories] == [30, 10, 33, 34, 20]
    matched, other = match_classes(train, val, exclude_empty=True)
    assert matched is train
    assert other[0].labels.tolist() == [1, 0]


def test_splits_without_a_common_class_are_an_error():
    with pytest.raises(UserError) as caught:
        match_classes(source(), source(("elk", "ELK"), labels=(0, 1)))
    assert str(caught.value) == (
        "training and validation data have no class in common: training has cat, dog, cow, owl, "
        "but validation has elk, ELK; use data with the same classes, or merge classes with "
        "--config.data.merge=OLD:NEW"
    )


def test_categories_of_one_name_become_one_class():
    twice = source(("cat", "cat", "cow", "owl"))
    assert rename_classes(twice, ["cat", "cow", "owl"])[0].labels.tolist() == [0, 0, 1, 0]


def voc_config(root, **fields):
    config = Config()
    config.data = replace(config.data, format="voc", root=str(root), **fields)
    return config


def test_classes_of_voc_are_filtered_ordered_and_merged(tmp_path):
    write_voc_split(tmp_path, "train", {"a": voc_xml(("dog", 1, 1, 9, 9), ("cat", 1, 1, 5, 5))})
    write_voc_split(tmp_path, "val", {"b": voc_xml(("Dog", 1, 1, 9, 9))})
    assert isinstance(open_source(voc_config(tmp_path), "train"), VocSource)
    val = open_source(voc_config(tmp_path), "val")
    assert [category.name for category in val.categories] == ["cat", "dog", "Dog"]
    config = voc_config(tmp_path, classes=("dog",), merge=("Dog:dog",))
    train, val = open_source(config, "train"), open_source(config, "val")
    for split in (train, val):
        assert class_names(split) == ["dog"]
        np.testing.assert_array_equal(split[0].boxes, [[1, 1, 9, 9]])
    with pytest.raises(UserError, match=r"'cta' does not occur .* did you mean 'cat'"):
        open_source(voc_config(tmp_path, classes=("cta",)), "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("a", "a")}, "data.classes=('a', 'a'): 'a' is listed twice; list it once"),
        ({"merge": ("a",)}, "data.merge=('a',): use OLD:NEW, such as rbc:cell"),
        ({"merge": ("a:b", "a:c")}, "data.merge=('a:b', 'a:c'): list each OLD once"),
        (
            {"classes": ("a",), "ignore": ("a",)},
            "data.ignore=('a',): a class is also in data.classes; list it in only one of the two",
        ),
        ({"sources": ("voc",)}, "data.sources=('voc',): use FORMAT:ROOT, such as voc:cells; "),
        ({"val_fraction": 0.9}, "data.val_fraction=0.9: must be between 0 and 0.5"),
        (
            {"val_fraction": 0.1, "val": "none"},
            "data.val_fraction=0.1: splits off validation images, but data.val=none uses none",
        ),
    ],
)
def test_check_of_contradicting_fields_names_the_fix(fields, message):
    with pytest.raises(UserError) as caught:
        check(Config(data=Data(**fields)))
    assert str(caught.value).startswith(f"config.{message}")

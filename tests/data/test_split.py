"""Validation images that are split off the training images, and split.json."""

import json

import numpy as np
import pytest

from nanodet_jax.config import Config, Data
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import Category, make_record
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.data.split import (
    SPLIT,
    SubsetSource,
    choose_validation,
    read_split,
    save_split,
    split_source,
)
from nanodet_jax.errors import UserError

DATA = Data(val_fraction=0.2)


def source(labels, names=None):
    """Return a source with an image for each list of labels."""
    records = [
        make_record(
            100 + index,
            names[index] if names else f"{index:03d}.jpg",
            b"",
            (50, 60),
            [[0, 0, 9, 9]] * len(of_image),
            of_image,
            [False] * len(of_image),
            [81] * len(of_image),
        )
        for index, of_image in enumerate(labels)
    ]
    return InMemorySource(tuple(Category(id, f"c{id}") for id in range(3)), records)


MIXED = [[0]] * 70 + [[0, 1]] * 20 + [[0, 2]] * 4 + [[]] * 6


def test_split_has_the_fraction_of_each_class():
    chosen = choose_validation(source(MIXED), 0.2, seed=0)
    assert len(chosen) == 20
    assert [np.count_nonzero([label in MIXED[i] for i in chosen]) for label in (1, 2)] == [4, 1]
    assert sum(not MIXED[i] for i in chosen) == 1
    assert chosen == sorted(chosen)


def test_split_of_few_images_has_each_class_in_both_parts():
    few = [[0]] * 30 + [[1]] * 2 + [[2]]
    chosen = choose_validation(source(few), 0.1, seed=0)
    assert len(chosen) == 3
    assert sum(i in (30, 31) for i in chosen) == 1
    assert 32 not in chosen  # the only image of its class trains
    assert len(choose_validation(source([[0], [1], [2]]), 0.1, seed=0)) == 1


def test_split_depends_on_names_and_seed_alone():
    names = [f"{index:03d}.jpg" for index in range(100)]
    first = {names[i] for i in choose_validation(source(MIXED), 0.2, seed=0)}
    order = np.random.default_rng(0).permutation(100)
    shuffled = source([MIXED[i] for i in order], [names[i] for i in order])
    assert {shuffled[i].name for i in choose_validation(shuffled, 0.2, seed=0)} == first
    other = {names[i] for i in choose_validation(source(MIXED), 0.2, seed=1)}
    assert other != first
    # Adding five images moves at most one image of each class.
    more = source([*MIXED, *[[0]] * 5], [*names, *(f"new{i}.jpg" for i in range(5))])
    after = {more[i].name for i in choose_validation(more, 0.2, seed=0)}
    assert len(first - after) <= 1


def test_augmented_copies_of_an_image_stay_together():
    names = [f"{i // 3}_jpg.rf.{i:032x}.jpg" for i in range(60)]
    chosen = choose_validation(source([[0]] * 60, names), 0.2, seed=0)
    assert len(chosen) == 12
    assert {i // 3 for i in chosen} == {i // 3 for i in range(60) if i in chosen}
    assert all(3 * (i // 3) + k in chosen for i in chosen for k in range(3))


def test_copies_of_a_file_stay_together(tmp_path):
    paths = []
    for index in range(20):
        for copy in "abc":
            path = tmp_path / f"{copy}{index}.jpg"
            path.write_bytes(b"%02d" % index)
            paths.append(path)
    records = [
        make_record(index, path.name, path, (9, 9), [[0, 0, 9, 9]], [0], [False], [81])
        for index, path in enumerate(paths)
    ]
    chosen = choose_validation(InMemorySource((Category(1, "cat"),), records), 0.2, seed=0)
    assert len(chosen) == 12
    assert all(3 * (i // 3) + k in chosen for i in chosen for k in range(3))


def test_subset_has_records_and_ground_truth_of_its_images():
    subset = SubsetSource(source([[0], [1, 2], [2]]), [1, 2])
    assert [record.image_id for record in subset] == [101, 102]
    assert (len(subset), subset.num_boxes(0), subset.image_size(1)) == (2, 2, (50, 60))
    truth = subset.ground_truth()
    assert [image["id"] for image in truth["images"]] == [101, 102]
    assert [(i["image_id"], i["category_id"]) for i in truth["annotations"]] == [
        (101, 1), (101, 2), (102, 2)
    ]  # fmt: skip


def test_split_without_images_for_one_part_is_an_error():
    with pytest.raises(UserError) as caught:
        split_source(source([[0]]), DATA, None)
    assert str(caught.value) == (
        "config.data.val_fraction=0.2: splits 1 images into 1 for training and 0 for validation, "
        "but both need at least one; add images, or train without validation: "
        "--config.data.val_fraction=0 --config.data.val=none"
    )


def test_split_file_keeps_the_validation_images_of_a_run(tmp_path):
    whole = source(MIXED)
    train, val = split_source(whole, DATA, read_split(tmp_path, DATA))
    assert save_split(tmp_path, DATA, train, val) == []
    names = {record.name for record in val}
    assert read_split(tmp_path, DATA) == names
    written = (tmp_path / SPLIT).read_bytes()

    gone = sorted(names)[0]
    kept = [record.name for record in whole if record.name != gone]
    changed = source([[0]] * (len(kept) + 5), [*kept, *(f"new{i}.jpg" for i in range(5))])
    train, val = split_source(changed, DATA, read_split(tmp_path, DATA))
    assert {record.name for record in val} == names - {gone}
    assert save_split(tmp_path, DATA, train, val) == [
        f"note: validation images that {tmp_path / SPLIT} lists but the data does not contain: 1, "
        f"such as {gone}",
        f"note: {tmp_path / SPLIT} was written for 100 images, but now there are 104; the "
        "validation images stay the same, and added images are used for training",
    ]
    assert (tmp_path / SPLIT).read_bytes() == written


def test_split_file_of_another_fraction_or_damaged_is_an_error(tmp_path):
    save_split(tmp_path, DATA, *split_source(source(MIXED), DATA, None))
    with pytest.raises(UserError, match=r"val_fraction=0\.1: .* were split with 0\.2 \(.*another"):
        read_split(tmp_path, Data(val_fraction=0.1))
    with pytest.raises(UserError, match=r"val_seed=1: .* were split with 0 "):
        read_split(tmp_path, Data(val_fraction=0.2, val_seed=1))
    for content in ([], {}, {"val_fraction": 0.2, "val_seed": 0, "validation": [1]}):
        (tmp_path / SPLIT).write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"split\.json: damaged .*; delete it"):
            read_split(tmp_path, DATA)


def test_open_source_with_val_fraction_splits_the_training_images():
    config = Config(input_size=(64, 64))
    config.data = Data(format="shapes", train_size=20, val_size=5, val_fraction=0.25)
    train, val = open_source(config, "train"), open_source(config, "val")
    assert (len(train), len(val)) == (15, 5)
    names = [record.name for part in (train, val) for record in part]
    assert sorted(names) == [f"shapes-train-{index:06d}.png" for index in range(20)]
    given = {"shapes-train-000003.png"}
    [record] = open_source(config, "val", validation=given)
    assert record.name in given


def test_dataset_without_images_of_a_split_is_evaluated_as_a_whole(capsys):
    config = Config()
    config.data = Data(format="shapes", train_size=40, val_fraction=0.25)
    val = open_source(config, "val", validation={"of another dataset"})
    assert len(val) == 40
    note = "note: none of the 40 images is a validation image of this run: using all of them\n"
    assert capsys.readouterr().out == note
    with pytest.raises(UserError, match="none of the 40 images is listed as a validation image"):
        open_source(config, "train", validation={"of another dataset"})


def test_open_source_without_validation_says_how_to_get_it():
    config = Config()
    config.data = Data(format="shapes", val="none")
    assert len(open_source(config, "train")) == 4000
    with pytest.raises(UserError, match=r"val=none: .*=given .*--config\.data\.root=FOLDER"):
        open_source(config, "val")

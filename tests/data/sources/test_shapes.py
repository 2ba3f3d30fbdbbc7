"""`ShapesSource`: determinism, statistics, and agreement of boxes and pixels."""

import numpy as np
import pytest

from nanodet_jax.data.sources import shapes
from nanodet_jax.data.sources.shapes import MAX_OBJECTS, NAMES, ShapesSource


def test_image_depends_only_on_seed_split_and_index():
    first, again = ShapesSource("train", 64, 10), ShapesSource("train", 64, 99)
    _ = first[0]
    np.testing.assert_array_equal(first[3].image, again[3].image)
    np.testing.assert_array_equal(first[3].boxes, again[3].boxes)
    others = [ShapesSource("val", 64, 10)[3], ShapesSource("train", 64, 10, seed=1)[3], first[4]]
    assert all(not np.array_equal(first[3].image, other.image) for other in others)


def test_counts_classes_sizes_and_areas_have_the_documented_range():
    source = ShapesSource("train", 100, 300)
    counts = [len(record.boxes) for record in source]
    assert set(counts) == set(range(1, MAX_OBJECTS + 1))
    labels = np.concatenate([record.labels for record in source])
    assert np.bincount(labels).min() > 0.2 * len(labels)
    boxes = np.concatenate([record.boxes for record in source])
    assert boxes.min() == 0 and boxes.max() == 100
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert 14 <= sides.min() < 20 and 55 < sides.max() <= 63
    areas = np.concatenate([record.areas for record in source])
    fractions = areas / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)  # of the box's area
    medians = [np.median(fractions[labels == label]) for label in range(len(NAMES))]
    np.testing.assert_allclose(medians[0], np.pi / 4, atol=0.03)  # a circle in its bounding square
    assert all(0.3 < median < 0.8 for median in medians)


def test_boxes_enclose_the_pixels_that_differ_from_the_background(monkeypatch):
    source = ShapesSource("val", 96, 40)
    plain, colors = np.full((96, 96, 3), 90, np.uint8), [np.full(3, 90)]
    monkeypatch.setattr(shapes, "_background", lambda rng, size: (plain.copy(), colors.copy()))
    monkeypatch.setattr(shapes, "NOISE", 1)
    for record in source:
        drawn = np.abs(record.image.astype(int) - 90).max(axis=2) > 12
        rows, columns = np.nonzero(drawn)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        union = [*record.boxes[:, :2].min(axis=0), *record.boxes[:, 2:].max(axis=0)]
        # The blur widens a shape by one pixel.
        np.testing.assert_allclose(found, union, atol=1.01)


def test_color_of_a_shape_is_distinct_from_background_and_other_shapes(monkeypatch):
    distances = []
    pick = shapes._distinct_color

    def record(rng, others):
        color = pick(rng, others)
        distances.append(min(np.abs(color.astype(int) - other).max() for other in others))
        return color

    monkeypatch.setattr(shapes, "_distinct_color", record)
    _ = list(ShapesSource("train", 64, 300))
    assert len(distances) > 300
    assert min(distances) > 70 and np.median(distances) > 140


def test_source_has_a_length_and_raises_index_error_past_its_end():
    source = ShapesSource("val", 32, 3)
    assert len(source) == len(list(source)) == 3
    assert [source.num_boxes(i) for i in range(3)] == [MAX_OBJECTS] * 3
    assert source.image_size(2) == source[2].image.shape[:2] == (32, 32)
    with pytest.raises(IndexError):
        source[3]
    truth = source.ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2, 3]
    assert [c["name"] for c in truth["categories"]] == list(NAMES)
    assert len(truth["annotations"]) == sum(len(record.boxes) for record in source)

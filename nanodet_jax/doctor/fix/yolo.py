"""Write a corrected copy of splits in YOLO format."""

import math
from collections.abc import Sequence
from pathlib import Path, PurePath

import yaml

from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.folder import read_annotation
from nanodet_jax.data.image_files import shown_size
from nanodet_jax.data.sources.clip import Box
from nanodet_jax.data.sources.yolo import LABELS_LIMIT, MAX_FRACTION, PIXEL_ROUNDING, ROUNDING
from nanodet_jax.data.sources.yolo_layout import read_split
from nanodet_jax.doctor.fix.boxes import (
    MISSING,
    REPEATED,
    UNREADABLE,
    Changes,
    correct_box,
)
from nanodet_jax.doctor.fix.copy_image import copy_image, is_unreadable, write_bytes
from nanodet_jax.progress import track


def correct_yolo(
    root: Path, splits: Sequence[str], out: Path, follow_links: bool, left_out: list[str]
) -> dict[str, Changes]:
    """Write a corrected copy of a dataset, and return what was changed in each split.

    Images and label files keep their names. `data.yaml` refers to one text file per split, which
    lists the images of the split. Errors in files that cannot be used are added to `left_out`.

    Raises:
      UserError: if a split is missing, or a file cannot be read or written.
    """
    changed, content = {}, {}
    names: tuple[str, ...] = ()
    for split in splits:
        changes = changed[split] = Changes()

        def on_fault(fault: Fault, changes: Changes = changes) -> None:
            if fault.kind is FaultKind.MISSING:
                changes[MISSING] += 1
            else:
                left_out.append(str(fault))

        names, _, images = read_split(root, split, follow_links, on_fault)
        for image in track(images, len(images), f"correcting {split}", "images"):
            copy_image(image.file, out / image.name)
            changes[UNREADABLE] += is_unreadable(image.file)
            if image.labels is not None:
                top = image.file.parents[len(PurePath(image.name).parts) - 1]
                text = _correct(image.labels, shown_size(image.file), changes)
                write_bytes(out / image.labels.relative_to(top), text.encode())
        lines = "".join(f"{image.name}\n" for image in images)
        write_bytes(out / f"{split}.txt", lines.encode())
        content[split] = f"{split}.txt"
    description = yaml.safe_dump({**content, "names": list(names)}, sort_keys=False)
    write_bytes(out / "data.yaml", description.encode())
    return changed


def _correct(file: Path, size: tuple[int, int] | None, changes: Changes) -> str:
    """Return the corrected text of a label file; `size` is the (height, width) of its image."""
    content = read_annotation(file, LABELS_LIMIT, "the boxes of an image")
    text = content.decode("utf-8-sig", "replace")
    smallest = (0.0, 0.0)
    if size is not None:
        height, width = size
        smallest = (1 - PIXEL_ROUNDING) / width, (1 - PIXEL_ROUNDING) / height
    lines, seen = [], set()
    for line in text.splitlines():
        box = _box_of(line)
        if box is not None:
            corrected = correct_box(box, (1.0, 1.0), changes, smallest=smallest, tolerance=ROUNDING)
            label = line.split()[0]
            key = float(label), corrected
            if corrected is not None and key in seen:
                changes[REPEATED] += 1
            if corrected is None or key in seen:
                continue
            seen.add(key)
            if corrected != box:
                line = _line(label, corrected)
        lines.append(f"{line}\n")
    return "".join(lines)


def _box_of(line: str) -> Box | None:
    """Return the box of a line, xyxy in fractions; None if the line cannot be corrected."""
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        return None
    if (
        not all(map(math.isfinite, (label, *numbers)))
        or max(map(abs, numbers), default=9) > MAX_FRACTION
    ):
        return None
    if len(numbers) == 4:
        x, y, w, h = numbers
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    return None


def _line(label: str, box: Box) -> str:
    x1, y1, x2, y2 = box
    return f"{label} {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}"

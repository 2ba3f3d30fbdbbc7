"""Hostile YOLO labels and data.yaml files: a part of `hostile_images.py`."""

import os
from collections import Counter
from pathlib import Path

from nanodet_jax.config import Config
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.doctor.scan import scan
from nanodet_jax.errors import UserError
from tests.builders import write_image

VALID = b"0 .5 .5 .5 .5"
LINES = {
    "not finite": [b"0 nan .5 .5 .5", b"0 .5 inf .5 .5", b"nan .5 .5 .5 .5", b"0 .5 .5 .5 1e999"],
    "no such class": [b"1 .5 .5 .5 .5", b"-1 .5 .5 .5 .5", b".5 .5 .5 .5 .5", b"1e300 .5 .5 .5 .5"],
    "text": [b"thing .5 .5 .5 .5", b"0,.5,.5,.5,.5", b"{}", b"<xml/>", b"\0", b"0 0x1 0 0 0"],
    "other encodings": [b"\xff\xfe0\0", b"\x1b[2J", "\u0661 .5 .5 .5 .5".encode()],
    "too few or too many": [b"0", b"0 .5 .5 .5", b"0 .5 .5 .5 .5 .5", b"0 .1 .1 .2 .2 .3 .3 .4"],
    "outside": [b"0 50 40 10 10", b"0 -9 .5 .5 .5", b"0 .1 .1 2 .2 .3 .3", b"0 .5 .5 1e308 1e308"],
    "inverted": [b"0 .5 .5 -.001 .5", b"0 .5 .5 .5 -.01"],
    "no area": [b"0 .5 .5 0 .5", b"0 .1 .1 .1 .2 .1 .3"],
    "long": [b"0 " * 2_000_000, b"0 .5 .5 .5 " + b"9" * 4_000_000, b"0 " * 10_000_000],
}
YAMLS = [
    b"", b"[", b"\xff", b"[" * 100_000, b"- " * 100_000, b"train: images", b"names: [a]",
    b"{train: images, names: [a, no]}", b"{train: images, nc: 9, names: [a]}",
    b"{train: /etc, names: [a]}", b"{train: ../.., names: [a]}", b"{train: up, names: [a]}",
    b"{train: circle, names: [a]}", b"{train: passwd.txt, names: [a]}",
    b"{train: !!python/object/apply:os.system [touch canary], names: [a]}",
    b"a: &a {b: c}\nd: &d {<<: [*a, *a]}\ntrain: images\nnames: [a]", b"#" * 300_000,
]  # fmt: skip


def check(folder: Path) -> tuple[Counter[str], list[str]]:
    """Write the files to a new folder and read them.

    Returns:
      The number of cases by kind, and descriptions of the cases that were not reported correctly.
    """
    images, labels = folder / "images", folder / "labels"
    labels.mkdir(parents=True)
    faulty = [(kind, line) for kind, lines in LINES.items() for line in lines]
    for index, line in enumerate([VALID, *(line for _, line in faulty)]):
        write_image(images / f"{index}.png")
        (labels / f"{index}.txt").write_bytes(line)
    (folder / "up").symlink_to("..")
    (folder / "circle").symlink_to("circle")
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    os.mkfifo(images / "pipe.png")
    os.mkfifo(labels / "pipe.txt")
    (folder / "data.yaml").write_bytes(b"{train: images, names: [thing]}")
    config = Config()
    config.data.format, config.data.root = "yolo", str(folder)
    found = scan(config, "train", progress=False)
    assert len(found.records[0].boxes) == 1, "the valid image must be read"
    reported = "\n".join(map(str, found.faults))
    wrong = [
        f"not reported: {kind}: {line[:40]!r}"
        for index, (kind, line) in enumerate(faulty, start=1)
        if f"{labels}/{index}.txt: " not in reported
    ]
    for yaml in YAMLS:
        (folder / "data.yaml").write_bytes(yaml)
        try:
            YoloSource(folder, "train")
            wrong.append(f"accepted: data.yaml {yaml[:60]!r}")
        except UserError as error:
            if str(folder) not in str(error) or "\n" in str(error):
                wrong.append(f"rejected without its name: data.yaml {yaml[:60]!r}: {error}")
    kinds = Counter(f"YOLO label: {kind}" for kind, _ in faulty)
    return kinds + Counter({"YOLO data.yaml": len(YAMLS)}), wrong

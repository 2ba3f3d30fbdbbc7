"""Images named by Windows paths, in a different case, or by paths of the annotator's machine."""

import pytest

from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.file_search import FileSearch
from nanodet_jax.data.folder import Folder
from tests.builders import write_image


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    for name in ("a.png", "deep/b.png", "deep/c.JPG", "same.png", "other/Same.png", "x/1.png",
                 "y/1.png"):  # fmt: skip
        write_image(root / name) if name != "deep/c.JPG" else (root / name).write_bytes(b"")
    write_image(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    return root


def find(root, name):
    faults = []
    found = FileSearch(Folder(root)).find(name, "labels.json: image 7", faults.append)
    return found and found.relative_to(root).as_posix(), list(map(str, faults))


@pytest.mark.parametrize("name", ["a.png", "deep/b.png", "./a.png"])
def test_file_of_this_name_is_found_without_a_report(root, name):
    assert find(root, name) == (name.removeprefix("./"), [])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("deep\\b.png", "deep/b.png"),
        ("A.PNG", "a.png"),
        ("b.png", "deep/b.png"),
        ("deep/c.jpg", "deep/c.JPG"),
        ("images/deep/b.png", "deep/b.png"),
        ("images\\A.png", "a.png"),
        ("/content/data/b.png", "deep/b.png"),
        ("C:\\data\\images\\b.png", "deep/b.png"),
        ("..\\..\\media\\upload\\4\\a.png", "a.png"),
        ("../elsewhere/a.png", "a.png"),
        ("other/same.png", "other/Same.png"),
    ],
)
def test_file_of_another_spelling_is_found_and_reported(root, name, found):
    message = f"labels.json: image 7: {name!r} is read from {found!r}"
    assert find(root, name) == (found, [message])


@pytest.mark.parametrize(
    "name", ["1.png", "gone.png", "gone/a.png", "gone\\a.png", "deep\\a.png", "images", ""]
)
def test_file_of_no_such_name_is_not_found(root, name):
    found, faults = find(root, name)
    assert (found, faults) == (None, []) or name == ""


@pytest.mark.parametrize(
    "name", ["/data/1.png", "../same.png", "/etc/passwd", "..", "C:\\gone.png"]
)
def test_file_outside_whose_name_is_not_unique_below_is_a_fault(root, name):
    with pytest.raises(Fault, match=r"image 7: .* points outside the folder") as caught:
        find(root, name)
    assert caught.value.kind is FaultKind.PATH


@pytest.mark.parametrize("name", ["link.png", "LINK.png", "/content/link.png"])
def test_link_out_of_the_folder_is_a_fault_under_each_name(root, name):
    with pytest.raises(Fault, match=r"the symbolic link .*link\.png points outside"):
        find(root, name)

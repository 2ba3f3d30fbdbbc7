"""Images found in files and folders."""

import pytest

from nanodet_jax.data.image_files import READABLE_SUFFIXES, SUFFIXES
from nanodet_jax.errors import UserError
from nanodet_jax.inference.image_list import list_images


@pytest.fixture
def folder(tmp_path):
    """A folder of images with other files, subfolders, hidden files and folders, and links."""
    root = tmp_path / "photos"
    for name in ("b.jpg", "A.PNG", "notes.txt", "in/c.jp2", "in/deep/d.ppm", ".git/e.png"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "f.jpg").touch()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    return root


def names(folder, paths):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_list_images_of_a_folder_has_its_images_and_what_it_leaves_out(folder, tmp_path):
    found = list_images([folder], False, tmp_path / "out")
    assert names(folder, found.files) == ["A.PNG", "b.jpg"]
    assert names(folder, found.others) == ["notes.txt"]
    assert names(folder, found.folders) == [".git", "in", "link", "loop"]


def test_list_images_recursively_does_not_enter_hidden_folders_or_links(folder, tmp_path):
    found = list_images([folder], True, tmp_path / "out")
    assert names(folder, found.files) == ["A.PNG", "b.jpg", "in/c.jp2", "in/deep/d.ppm"]
    assert names(folder, found.folders) == [".git", "link", "loop"]


def test_list_images_leaves_out_the_folder_of_earlier_results(folder):
    found = list_images([folder], True, folder / "in")
    assert names(folder, found.files) == ["A.PNG", "b.jpg"]
    assert folder / "in" not in found.folders
    assert names(folder, list_images([folder / "in"], True, folder / "in").files) == [
        "in/c.jp2",
        "in/deep/d.ppm",
    ]


def test_list_images_keeps_given_files_of_any_name_in_their_order(folder, tmp_path):
    given = [folder / "notes.txt", folder / "b.jpg", folder / "notes.txt"]
    assert list_images(given, False, tmp_path).files == given


def test_list_images_without_images_names_the_fix(folder, tmp_path):
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "photos")
    with pytest.raises(UserError, match=r"outer: contains no images \(\.avif, .*--recursive"):
        list_images([tmp_path / "outer"], False, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: contains no images \([^)]*\.webp\)$"):
        list_images([tmp_path / "empty"], True, tmp_path / "out")
    with pytest.raises(UserError, match="missing: no such image or folder"):
        list_images([tmp_path / "missing"], True, tmp_path / "out")


def test_readable_suffixes_include_those_of_datasets():
    assert set(SUFFIXES) < set(READABLE_SUFFIXES)

"""Folder: names from annotation files, and the files that they may refer to."""

import json
import os

import pytest

from nanodet_jax.config import Config
from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.folder import Folder
from nanodet_jax.data.open_source import open_source
from nanodet_jax.errors import UserError
from tests.builders import voc_xml, write_image


@pytest.fixture
def root(tmp_path):
    """Folder of images, with links to a store outside of it."""
    root, store = tmp_path / "images", tmp_path / "store"
    (root / "deep" / "er").mkdir(parents=True)
    (store / "more").mkdir(parents=True)
    for file in (root / "a.png", root / "deep" / "er" / "b.png", store / "c.png",
                 store / "more" / "d.png"):  # fmt: skip
        write_image(file, (9, 8))
    (root / "inner.png").symlink_to("a.png")
    (root / "around.png").symlink_to(root / "deep" / ".." / "a.png")
    (root / "out.png").symlink_to(store / "c.png")
    (root / "up").symlink_to("..")
    (root / "more").symlink_to(store / "more")
    (root / "one.png").symlink_to("two.png")
    (root / "two.png").symlink_to("one.png")
    (root / "broken.png").symlink_to("gone")
    return root


@pytest.mark.parametrize("name", ["a.png", "deep/er/b.png", "./a.png", "inner.png", "around.png"])
def test_find_of_a_file_below_the_folder_returns_its_path(root, name):
    assert Folder(root).find(name, "x") == root / name


@pytest.mark.parametrize("name", ["c.png", "deep/a.png", "a.png/b", "", "a\0b", "x" * 5000,
                                  "a/" * 9999, "deep\\er\\b.png", "\ud800"])  # fmt: skip
def test_find_of_a_missing_file_returns_none(root, name):
    found = Folder(root).find(name, "x")
    assert found is None or (name == "" and found == root)


def test_find_checks_links_also_in_folders_that_were_found_before(root):
    """The listing of a folder that a name led to is cached."""
    (root / "deep" / "a.png").symlink_to(root.parent / "store" / "c.png")
    (root / "deep" / "c.png").symlink_to("er/b.png")
    folder = Folder(root)
    for name in ("deep/er/b.png", "deep/.", "deep/c.png", "./a.png", ".", "deep/er"):
        assert folder.find(name, "x") is not None
    for name in ("deep/a.png", "/a.png", "deep/../../store/c.png", "/deep/er/b.png", "more/d.png"):
        for _ in range(2):
            with pytest.raises(Fault):
                folder.find(name, "x")
    assert folder.find("deep/b.png", "x") is None


def test_names_below_lists_files_and_follows_links_inside_only(root):
    (root / "deep" / "up").symlink_to("..")
    (root / "deep" / "self").symlink_to("self")
    faults = []
    found = sorted(Folder(root).names_below("deep", "data.yaml", faults.append))
    assert found == sorted(
        ["deep/er/b.png", "deep/self"]
        + [f"deep/up/{name}" for name in ("a.png", "inner.png", "around.png", "out.png", "one.png",
                                          "two.png", "broken.png")]
    )  # fmt: skip
    assert sorted(str(fault).split(" points outside")[0] for fault in faults) == [
        f"data.yaml: the symbolic link {root}/deep/up/{name}" for name in ("more", "up")
    ]
    following = Folder(root, follow_links=True)
    assert sorted(following.names_below("more", "x", faults.append)) == ["more/d.png"]
    assert len(faults) == 2
    assert sorted(Folder(root / "deep" / "er").names_below("", "x", faults.append)) == ["b.png"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "points outside the folder"),
        ("../store/c.png", "points outside the folder"),
        ("deep/../../store/c.png", "points outside the folder"),
        ("..", "points outside the folder"),
        ("C:\\x.png", "points outside the folder"),
        ("\\\\host\\share\\x.png", "points outside the folder"),
        ("out.png", r"link .*out\.png points outside .*follow_links=True"),
        ("more/d.png", r"link .*more points outside"),
        ("up/store/c.png", r"link .*up points outside"),
        ("one.png", "is circular"),
        ("broken.png", "has no target"),
    ],
)
def test_find_of_a_name_that_points_outside_is_a_fault(root, name, reason):
    with pytest.raises(Fault, match=rf"^labels\.json: image 7: .*{reason}") as caught:
        Folder(root).find(name, "labels.json: image 7")
    assert caught.value.kind is FaultKind.PATH


def test_find_with_follow_links_follows_links_but_no_names_out(root):
    following = Folder(root, follow_links=True)
    for name in ("out.png", "more/d.png", "up/store/c.png"):
        assert following.find(name, "x") == root / name
    for name in ("one.png", "broken.png", "../store/c.png", "/etc/passwd"):
        with pytest.raises(Fault):
            following.find(name, "x")


def test_find_in_a_folder_that_is_a_link_itself_returns_its_path(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    alias = Folder(tmp_path / "alias")
    for name in ("a.png", "inner.png", "around.png"):
        assert alias.find(name, "x") == tmp_path / "alias" / name
    with pytest.raises(Fault, match="points outside"):
        alias.find("out.png", "x")


def test_folder_that_does_not_exist_is_an_error(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for name in ("gone", "circle"):
        with pytest.raises(UserError, match=f"{name}: folder is missing"):
            Folder(tmp_path / name)


@pytest.mark.parametrize("follow", [False, True])
def test_coco_image_behind_a_link_is_read_only_with_follow_links(root, tmp_path, follow):
    content = {
        "images": [{"id": 7, "file_name": "out.png"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    config = Config()
    config.data.train_images = str(root)
    config.data.train_annotations = str(tmp_path / "labels.json")
    config.data.follow_links = follow
    if follow:
        assert open_source(config, "train")[0].image == root / "out.png"
        return
    with pytest.raises(UserError, match=r"labels\.json: image 7: .*link .* points outside"):
        open_source(config, "train")


@pytest.mark.parametrize("what", ["images/a.png", "annotations/a.xml"])
def test_voc_file_behind_a_link_is_read_only_with_follow_links(root, tmp_path, what):
    split = tmp_path / "data" / "train"
    for name in ("images", "annotations"):
        (split / name).mkdir(parents=True)
    store = tmp_path / "store"
    (store / "a.xml").write_text(voc_xml(("a", 1, 1, 5, 5), width=9, height=8))
    for name, target in (("images/a.png", "c.png"), ("annotations/a.xml", "a.xml")):
        if name == what:
            (split / name).symlink_to(store / target)
        else:
            os.link(store / target, split / name)
    config = Config()
    config.data.format, config.data.root = "voc", str(tmp_path / "data")
    with pytest.raises(UserError, match=rf"a\.xml: the symbolic link .*{what} points outside"):
        open_source(config, "train")
    config.data.follow_links = True
    assert len(open_source(config, "train")[0].boxes) == 1


def test_voc2007_list_cannot_name_files_outside_its_folder(tmp_path):
    base = tmp_path / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    (tmp_path / "x.xml").write_text("<annotation/>")
    (base / "ImageSets" / "Main" / "train.txt").write_text("../../x\n")
    config = Config()
    config.data.format, config.data.root = "voc", str(tmp_path)
    with pytest.raises(UserError, match=r"x\.xml: is missing but listed in .*train\.txt"):
        open_source(config, "train")

"""List image files that the user names, directly or by folder, and name their drawn copies."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nanodet_jax.data.image_files import READABLE_SUFFIXES
from nanodet_jax.errors import UserError

MAX_STEM_BYTES = 240  # bytes; most file systems allow names of 255 bytes, including the suffix


class ImageList(NamedTuple):
    """Images to read, and the other entries of the folders."""

    files: list[Path]
    others: list[Path]  # files without an image suffix
    folders: list[Path]  # folders that were not searched


def list_images(paths: Sequence[Path], recursive: bool, excluded: Path) -> ImageList:
    """List the given files, and the images in the given folders.

    In a folder, images are recognized by their suffix and sorted by name.
    Args:
      paths: files and folders.
      recursive: search subfolders too, except hidden ones and links.
      excluded: a folder of results, not searched unless it is one of `paths`.

    Raises:
      UserError: naming the path, if it does not exist, cannot be read or contains no images.
    """
    found = ImageList([], [], [])
    for path in paths:
        try:
            if path.is_file():
                found.files.append(path)
                continue
            if not path.is_dir():
                raise UserError(f"{path}: no such image or folder")
            before = len(found.files)
            _search(path, recursive, os.path.realpath(excluded), found)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        if len(found.files) == before:
            searched = found.folders and not recursive
            fix = "; search its subfolders with --recursive" if searched else ""
            known = ", ".join(READABLE_SUFFIXES)
            raise UserError(f"{path}: contains no images ({known}){fix}")
    return found


def _search(folder: Path, recursive: bool, excluded: str, found: ImageList) -> None:
    def stop(error: OSError) -> None:
        raise error

    for here, folders, names in os.walk(folder, onerror=stop):
        for name in sorted(names):
            is_image = name.lower().endswith(READABLE_SUFFIXES)
            (found.files if is_image else found.others).append(Path(here, name))
        searched = []
        for name in sorted(folders):
            path = Path(here, name)
            if os.path.realpath(path) == excluded:
                continue
            if recursive and not name.startswith(".") and not path.is_symlink():
                searched.append(name)
            else:
                found.folders.append(path)
        folders[:] = searched


def name_pictures(files: list[Path]) -> list[str]:
    """Return a name for each file's drawn picture. Names are distinct even if case is ignored."""
    names: list[str] = []
    used: set[str] = set()
    for file in files:
        stem = file.stem
        if len(os.fsencode(stem)) > MAX_STEM_BYTES:
            stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="ignore")
        name, number = f"{stem}.jpg", 2
        while name.lower() in used:
            name, number = f"{stem}_{number}.jpg", number + 1
        used.add(name.lower())
        names.append(name)
    return names


def refuse_overwriting(files: list[Path], out: Path, names: list[str]) -> None:
    """Refuse to write a picture over one of the images.

    Raises:
      UserError: naming the image.
    """
    # If the last part of a path is a link, do not resolve it: the link itself would be replaced.
    originals = {Path(os.path.realpath(file.parent), file.name) for file in files}
    for name in names:
        if Path(os.path.realpath(out), name) in originals:
            raise UserError(
                f"{out / name}: is one of the input images, and a drawn copy would replace it; use "
                "a different --out"
            )

"""Safe lookup of the files that a dataset's annotations refer to."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath

from nanodet_jax.data.faults import Fault, FaultKind, OnFault
from nanodet_jax.errors import UserError
from nanodet_jax.files import read_regular


class Folder:
    """Files below the folder `path`, looked up by untrusted names.

    The folder itself may be a symbolic link, since the user chose it. A name must not be absolute
    or contain `..`. It must not pass through a link to the outside, unless `follow_links` is set.

    Each folder is listed only once, and names are looked up in the listings. On a network drive,
    this takes a second; querying every file would take minutes.

    Raises:
      UserError: if the folder is missing or cannot be listed.
    """

    def __init__(self, path: Path, follow_links: bool = False) -> None:
        if not path.is_dir():
            raise UserError(f"{path}: folder is missing")
        self.path, self._follow = path, follow_links
        self._real = os.path.realpath(path)
        self._listings: dict[PurePath, dict[str, os.DirEntry[str]]] = {
            PurePath(): _list_entries(path)
        }
        # Listings of the folders that `find` has checked, by the part of a name up to the last /.
        self._checked = {"": self._listings[PurePath()]}

    def __contains__(self, name: str) -> bool:
        """Return whether the folder itself has an entry of this name."""
        return name in self._listings[PurePath()]

    def names(self) -> list[str]:
        """Return the entries of the folder itself, in no particular order."""
        return list(self._listings[PurePath()])

    def find(self, name: str, where: str) -> Path | None:
        """Return the path of the file or folder `name`, or None if it does not exist.

        Args:
          name: path relative to the folder, with / as the separator.
          where: the annotation that names the file, for error messages.

        Raises:
          Fault: if the name is absolute or contains `..`; if a link points outside the folder and
            `follow_links` is not set; if a link is circular or has no target.
        """
        start = name[: name.rfind("/") + 1]
        last = name[len(start) :]
        entry = self._checked.get(start, {}).get(last)
        if entry is not None and not entry.is_symlink():  # the common case
            return self.path / name
        pure = PurePath(name)
        if points_outside(name):
            found = f"{name!r} points outside the folder {self.path}"
            raise Fault(FaultKind.PATH, f"{where}: {found}; use a path below the folder")
        parent = PurePath()
        for part in pure.parts:
            listing = self._listing(parent)
            if part not in listing:
                return None
            if listing[part].is_symlink():
                self._check_link(parent / part, where)
            parent /= part
        if last == pure.name:
            self._checked[start] = self._listing(pure.parent)
        return self.path / pure

    def names_below(self, start: str, where: str, on_fault: OnFault) -> Iterator[str]:
        """Yield the names of all files below the folder `start`, with / as the separator.

        Links to folders are followed if `find` accepts them, and each target is visited only once.
        Links to folders that `find` rejects are reported to `on_fault`.

        Raises:
          UserError: if a folder cannot be listed.
        """
        waiting, seen = [PurePath(start)], set()
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(self.path / folder)
            if real in seen:  # a link to a folder that was already visited
                continue
            seen.add(real)
            prefix = "" if folder == PurePath() else f"{folder.as_posix()}/"
            for name, entry in self._listing(folder).items():
                # Only links need a query; for circular links, entry.is_dir() would raise an error.
                if not (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()):
                    yield prefix + name
                    continue
                inner = folder / name
                try:
                    if entry.is_symlink():
                        self._check_link(inner, where)
                    waiting.append(inner)
                except Fault as fault:
                    on_fault(fault)

    def _listing(self, name: PurePath) -> dict[str, os.DirEntry[str]]:
        """Return the entries of the subfolder `name`, or {} if `name` is not a folder."""
        if name not in self._listings:
            path = self.path / name
            self._listings[name] = _list_entries(path) if path.is_dir() else {}
        return self._listings[name]

    def _check_link(self, name: PurePath, where: str) -> None:
        link = self.path / name
        try:
            target = os.path.realpath(link, strict=True)
        except OSError as error:
            problem = "is circular" if error.errno == errno.ELOOP else "has no target"
            message = f"{where}: the symbolic link {link} {problem}; replace it with the file"
            raise Fault(FaultKind.PATH, message) from error
        if not self._follow and not PurePath(target).is_relative_to(self._real):
            raise Fault(
                FaultKind.PATH,
                f"{where}: the symbolic link {link} points outside {self.path}, to {target}; "
                "replace the link with its target, or allow such links with "
                "--config.data.follow_links=True",
            )


def points_outside(name: str) -> bool:
    """Return whether a path is absolute, on this system or on Windows, or contains `..`."""
    pure = PurePath(name)
    return pure.is_absolute() or bool(PureWindowsPath(name).drive) or ".." in pure.parts


def _list_entries(path: Path) -> dict[str, os.DirEntry[str]]:
    """Return the entries of a folder by name."""
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry for entry in entries}
    except OSError as error:
        raise UserError(f"{path}: cannot be listed: {error.strerror}") from error


def read_annotation(path: Path, limit: float, what: str) -> bytes:
    """Read an annotation file of at most `limit` bytes; `what` describes it in error messages.

    Raises:
      Fault: naming the file, if it cannot be read.
    """
    try:
        return read_regular(path, limit, what)
    except OSError as error:
        raise Fault(FaultKind.FILE, f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Fault(FaultKind.FILE, f"{path}: cannot be read: {error}") from error

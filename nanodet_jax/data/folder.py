"""A folder of a data set, and the files in it that an annotation may name."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath

from nanodet_jax.data.faults import Fault, Kind, OnFault
from nanodet_jax.errors import UserError
from nanodet_jax.files import read_regular


class Folder:
    """Files below `path`, found by names that others wrote.

    The folder itself may be a symbolic link, as whoever runs the program has chosen it. A name may
    not lead out of it: neither absolute, nor by `..`, nor through a link inside the folder, unless
    `follow_links`. Each folder is listed once instead of asking for every file: on a network drive
    that makes minutes a second.

    Raises:
      UserError: if the folder is missing or cannot be listed.
    """

    def __init__(self, path: Path, follow_links: bool = False) -> None:
        if not path.is_dir():
            raise UserError(f"{path}: folder is missing")
        self.path, self._follow = path, follow_links
        self._real = os.path.realpath(path)
        self._listings: dict[PurePath, dict[str, os.DirEntry]] = {PurePath(): _listed(path)}
        # What names begin with, up to the last /, and what lies where that was found to lead.
        self._followed = {"": self._listings[PurePath()]}

    def __contains__(self, name: str) -> bool:
        """Whether something of this name lies in the folder itself."""
        return name in self._listings[PurePath()]

    def names(self) -> list[str]:
        """All that lies in the folder itself, in no particular order."""
        return list(self._listings[PurePath()])

    def find(self, name: str, where: str) -> Path | None:
        """The file called `name`, with / between folders; None if there is none.

        `where` is the entry that names it, for the message.

        Raises:
          Fault: if the name leads, or could lead, out of the folder, or in a circle.
        """
        start = name[: name.rfind("/") + 1]
        last = name[len(start) :]
        entry = self._followed.get(start, {}).get(last)
        if entry is not None and not entry.is_symlink():  # nearly all names are such
            return self.path / name
        pure = PurePath(name)
        if pure.is_absolute() or PureWindowsPath(name).drive or ".." in pure.parts:
            raise Fault(
                Kind.PATH,
                f"{where}: {name!r} is a path out of the folder {self.path}; give names below it",
            )
        parent = PurePath()
        for part in pure.parts:
            listing = self._listing(parent)
            if part not in listing:
                return None
            if listing[part].is_symlink():
                self._check_link(parent / part, where)
            parent /= part
        if last == pure.name:
            self._followed[start] = self._listing(pure.parent)
        return self.path / pure

    def names_below(self, start: str, where: str, on_fault: OnFault) -> Iterator[str]:
        """All that lies below the folder called `start`, folders apart, with / between folders.

        Links to folders are followed where `find` would, but none twice; `on_fault` is told of the
        others.

        Raises:
          UserError: if a folder cannot be listed.
        """
        waiting, seen = [PurePath(start)], set()
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(self.path / folder)
            if real in seen:  # a link that leads up again
                continue
            seen.add(real)
            prefix = "" if folder == PurePath() else f"{folder.as_posix()}/"
            for name, entry in self._listing(folder).items():
                # Only links ask the file system, and not by the entry: it raises for circles.
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

    def _listing(self, name: PurePath) -> dict[str, os.DirEntry]:
        """What lies in a folder of this one, by name; nothing if it is none."""
        if name not in self._listings:
            path = self.path / name
            self._listings[name] = _listed(path) if path.is_dir() else {}
        return self._listings[name]

    def _check_link(self, name: PurePath, where: str) -> None:
        link = self.path / name
        try:
            target = os.path.realpath(link, strict=True)
        except OSError as error:
            fate = "goes in a circle" if error.errno == errno.ELOOP else "leads nowhere"
            raise Fault(Kind.PATH, f"{where}: the symbolic link {link} {fate}") from error
        if not self._follow and not PurePath(target).is_relative_to(self._real):
            raise Fault(
                Kind.PATH,
                f"{where}: the symbolic link {link} leads out of {self.path}, to {target}; put the "
                "file there, or trust such links with --config.data.follow_links=True",
            )


def _listed(path: Path) -> dict[str, os.DirEntry]:
    """What lies in a folder, by name, as one reading of it tells."""
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry for entry in entries}
    except OSError as error:
        raise UserError(f"{path}: cannot be listed: {error.strerror}") from error


def read_annotation(path: Path, most: float, what: str) -> bytes:
    """Content of a file of annotations, as `read_regular`.

    Raises:
      Fault: naming the file, if it cannot be read.
    """
    try:
        return read_regular(path, most, what)
    except OSError as error:
        raise Fault(Kind.FILE, f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Fault(Kind.FILE, f"{path}: cannot be read: {error}") from error

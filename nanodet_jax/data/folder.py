"""A folder of a data set, and the files in it that an annotation may name."""

import errno
import os
from pathlib import Path, PurePath, PureWindowsPath

from nanodet_jax.data.faults import Fault, Kind
from nanodet_jax.errors import UserError


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
        self._listings: dict[PurePath, dict[str, bool]] = {PurePath(): _links_by_name(path)}

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
        if self._listings[PurePath()].get(name) is False:  # no link: nearly all names are such
            return self.path / name
        pure = PurePath(name)
        if pure.is_absolute() or PureWindowsPath(name).drive or ".." in pure.parts:
            raise Fault(
                Kind.PATH,
                f"{where}: {name!r} is a path out of the folder {self.path}; give names below it",
            )
        parent = PurePath()
        for part in pure.parts:
            if parent not in self._listings:
                inner = self.path / parent
                self._listings[parent] = _links_by_name(inner) if inner.is_dir() else {}
            if part not in self._listings[parent]:
                return None
            if self._listings[parent][part]:
                self._check_link(parent / part, where)
            parent /= part
        return self.path / pure

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


def _links_by_name(path: Path) -> dict[str, bool]:
    """Names in a folder, and whether each is a symbolic link."""
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except OSError as error:
        raise UserError(f"{path}: cannot be listed: {error.strerror}") from error

"""Find images by the names that other programs and operating systems write into annotations."""

from collections import defaultdict
from pathlib import Path, PurePosixPath

from nanodet_jax.data.faults import Fault, FaultKind, OnFault, ignore_fault
from nanodet_jax.data.folder import Folder, points_outside


class FileSearch:
    """Search for files below a folder by names that may not match exactly.

    An exact match is used if there is one. Otherwise these variants are tried, and each file that
    is found this way is reported as a tolerated fault:

    - `\\` as the separator, as on Windows;
    - a path that starts with the name of the folder itself;
    - upper case instead of lower case or vice versa, if only one file matches;
    - the last part of a path that points outside the folder (such as a path on the machine where
      the annotations were made), or a name without a folder, if only one file in all folders has
      this name.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._by_path: dict[str, list[str]] | None = None  # paths, by lower-case path
        self._by_name: dict[str, list[str]] = {}  # paths, by lower-case last part

    def find(self, name: str, where: str, on_fault: OnFault) -> Path | None:
        """Return the file called `name`, or None if there is none.

        Args:
          name: path relative to the folder.
          where: the annotation that names the file, for error messages.
          on_fault: called if the file is found under a different name.

        Raises:
          Fault: as in `Folder.find`, unless the name points outside the folder and the last
            part of the name identifies exactly one file.
        """
        plain = name.replace("\\", "/")
        is_foreign = points_outside(plain)
        try:
            found = self._folder.find(name, where)
            if found is not None:
                return found
        except Fault:
            if not is_foreign or self._other_name(plain, is_foreign) is None:
                raise
        other = self._other_name(plain, is_foreign)
        if other is None:
            return None
        found = self._folder.find(other, where)
        if found is not None:
            message = f"{where}: {name!r} is read from {other!r}"
            on_fault(Fault(FaultKind.RENAMED, message, tolerated=True))
        return found

    def _other_name(self, plain: str, is_foreign: bool) -> str | None:
        """Return the path of the file that `plain` refers to; None unless there is exactly one."""
        if self._by_path is None:
            self._by_path = self._build_index()
        path = PurePosixPath(plain)
        if is_foreign:
            candidates = self._by_name.get(path.name.lower(), [])
        else:
            candidates = self._by_path.get(path.as_posix().lower(), [])
            if not candidates and path.parts[:1] == (self._folder.path.name,):
                inner = PurePosixPath(*path.parts[1:]).as_posix()
                candidates = self._by_path.get(inner.lower(), [])
            if not candidates and len(path.parts) == 1:
                candidates = self._by_name.get(path.name.lower(), [])
            exact = [candidate for candidate in candidates if candidate == path.as_posix()]
            candidates = exact or candidates
        return candidates[0] if len(candidates) == 1 else None

    def _build_index(self) -> dict[str, list[str]]:
        by_path, by_name = defaultdict(list), defaultdict(list)
        for name in self._folder.names_below("", str(self._folder.path), ignore_fault):
            by_path[name.lower()].append(name)
            by_name[name.rpartition("/")[2].lower()].append(name)
        self._by_name = dict(by_name)
        return dict(by_path)

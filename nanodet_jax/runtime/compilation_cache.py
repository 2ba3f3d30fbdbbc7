"""The folder in which JAX keeps compiled programs between runs.

JAX loads these programs as machine code, without any check. A folder that other users can write to
is therefore never used.
"""

import functools
import os
import stat
from pathlib import Path

import jax

from nanodet_jax.errors import UserError
from nanodet_jax.terminal import say

ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"
OPTION = "jax_compilation_cache_dir"
# By default JAX does not keep small programs. Each value is (JAX's default, our value).
THRESHOLDS = {
    "jax_persistent_cache_min_entry_size_bytes": (0, -1),
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
}


def use_folder(folder: str | Path) -> None:
    """Keep compiled programs of any size in a folder. Create the folder if it is missing.

    Raises:
      UserError: if the folder cannot be created, or other users can write to it.
    """
    folder = str(folder)
    if "://" not in folder:  # the owner of a bucket controls write access
        ensure_private_folder(Path(folder))
    if getattr(jax.config, OPTION) != folder:
        jax.config.update(OPTION, folder)
    for name, (default, ours) in THRESHOLDS.items():
        if getattr(jax.config, name) == default and name.upper() not in os.environ:
            jax.config.update(name, ours)


@functools.cache
def use_configured_or_default_folder() -> None:
    """Use the folder that the user has configured, or else `nanodet_jax` in their cache folder.

    The user's folder is `jax.config.jax_compilation_cache_dir` or `$JAX_COMPILATION_CACHE_DIR`. If
    this setting is an empty string, no programs are kept. If the default folder cannot be used, a
    note is printed and no programs are kept. Later calls do nothing.

    Raises:
      UserError: if the user's folder cannot be created, or other users can write to it.
    """
    configured = getattr(jax.config, OPTION)
    if configured is None:
        configured = os.environ.get(ENVIRONMENT)  # JAX ignores it if set after JAX's import
    if configured is not None:
        if configured:
            use_folder(configured)
        return
    try:
        use_folder(_default_folder())
    except UserError as error:
        say(f"note: {error}; until then each run compiles its programs again")


def _default_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodet_jax"
    except RuntimeError as error:
        raise UserError(
            f"this user has no home directory for compiled programs; set {ENVIRONMENT}"
        ) from error


def ensure_private_folder(folder: Path) -> None:
    """Create a folder for this user only. Refuse an existing one that others can write to.

    The folder and all files in it must belong to this user or to root, and other users must not
    have write access. On Windows, where permissions work differently, they are not checked.

    Raises:
      UserError: naming the folder and a command that fixes it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        reachable = bool(status.st_mode & 0o011)  # by other users
        with os.scandir(folder) as entries:
            files = [entry.stat(follow_symlinks=False) for entry in entries]
        suspect = _is_foreign(status) or any(_is_foreign(file, reachable) for file in files)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot store compiled programs: {error.strerror}; set {ENVIRONMENT} to "
            "a different folder"
        ) from error
    if suspect:
        raise UserError(
            f"{folder}: other users can write to this folder of compiled programs, and could "
            f"run code as you; run `chmod -R go-w {folder}` if its content is yours, otherwise "
            f"delete it, or set {ENVIRONMENT} to a different folder"
        )


def _is_foreign(status: os.stat_result, reachable: bool = True) -> bool:
    """Return whether a user other than root or this user owns a file, or can write to it."""
    if not hasattr(os, "geteuid"):
        return False
    others = 0o002 if _is_private_group(status.st_gid) else 0o022
    writable = stat.S_IMODE(status.st_mode) & others and not stat.S_ISLNK(status.st_mode)
    return status.st_uid not in (0, os.geteuid()) or bool(reachable and writable)


@functools.cache
def _is_private_group(group: int) -> bool:
    """Return whether this user is the only member of a group. Many systems create one per user."""
    import grp  # not available on Windows
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    same = user.pw_gid == group and entry.gr_name == user.pw_name
    return same and set(entry.gr_mem) <= {user.pw_name}

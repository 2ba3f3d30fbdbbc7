"""Folders of compiled programs: one that other users can write to is never used."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.runtime.process import setup_process

needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no owners")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
OTHER = 4321  # a user id
SET_UP = """
from nanodet_jax.errors import UserError
from nanodet_jax.runtime.process import setup_process
import jax
try:
    setup_process()
except UserError as error:
    print("error:", error)
else:
    setup_process()  # must not print again
    print("cache:", jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture(autouse=True)
def restore_cache():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def lines_of(**environment: str) -> list[str]:
    """Return what a new process prints about its cache."""
    ours = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SET_UP],
        env=ours | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_owners
def test_missing_folder_is_made_for_this_user_alone(tmp_path):
    folder = tmp_path / "deep" / "cache"
    setup_process(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)
    setup_process(folder)


@needs_owners
@pytest.mark.parametrize("mode", [0o777, 0o772, 0o722, 0o1777])
def test_given_folder_that_others_can_write_to_is_refused(tmp_path, mode):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(
        UserError, match=f"{folder}: other users can write .*chmod -R go-w {folder}"
    ):
        setup_process(folder)
    folder.chmod(0o755)
    setup_process(folder)


@needs_root
def test_folder_that_a_group_can_write_to_is_refused_unless_the_group_is_private(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o770)
    setup_process(folder)
    os.chown(folder, -1, OTHER)
    with pytest.raises(UserError, match="other users can write"):
        setup_process(folder)


@needs_root
def test_file_or_folder_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "cache"
    setup_process(folder)
    planted = folder / "jit_f-cache"
    planted.touch()
    os.chown(planted, OTHER, OTHER)
    with pytest.raises(UserError, match="other users can write"):
        setup_process(folder)
    planted.unlink()
    planted.symlink_to("elsewhere")
    os.chown(planted, OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(UserError, match="other users can write"):
        setup_process(folder)
    planted.unlink()
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(UserError, match="other users can write"):
        setup_process(folder)


@needs_root
def test_file_that_others_can_write_to_is_refused_only_in_a_folder_that_they_can_reach(tmp_path):
    folder = tmp_path / "cache"
    setup_process(folder)
    (folder / "jit_f-cache").touch()
    os.chown(folder / "jit_f-cache", -1, OTHER)
    (folder / "jit_f-cache").chmod(0o664)  # of a user whose umask is 002
    setup_process(folder)
    folder.chmod(0o755)
    with pytest.raises(UserError, match="chmod -R go-w"):
        setup_process(folder)


def test_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/cache: cannot store compiled programs: Not a dir"):
        setup_process(tmp_path / "file" / "cache")


def test_bucket_is_not_checked():
    setup_process("gs://bucket/cache")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"


@needs_owners
def test_unsafe_default_folder_gives_a_note_and_unsafe_configured_folder_an_error(tmp_path):
    folder = tmp_path / "nanodet_jax"
    folder.mkdir()
    folder.chmod(0o777)
    note, cache = lines_of(XDG_CACHE_HOME=str(tmp_path))
    assert note.startswith(f"note: {folder}: other users can write") and "chmod" in note
    assert cache == "cache: None"
    (error,) = lines_of(JAX_COMPILATION_CACHE_DIR=str(folder))
    assert error.startswith(f"error: {folder}: other users can write")
    folder.chmod(0o700)
    assert lines_of(XDG_CACHE_HOME=str(tmp_path)) == [f"cache: {folder}"]


def test_two_processes_can_make_the_folder_at_the_same_time(tmp_path):
    folder = tmp_path / "deep" / "cache"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", SET_UP]
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    assert [one.communicate()[0] for one in started] == [f"cache: {folder}\n"] * 2

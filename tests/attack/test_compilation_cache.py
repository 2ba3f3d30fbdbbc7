"""A folder of compiled programs that other users can write to: never used."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.runtime import backend

needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no owners")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
OTHER = 4321  # a user id
PREPARE = """
import sys
from nanodet_jax.runtime import backend
from nanodet_jax.errors import UserError
import jax
try:
    backend.prepare()
except UserError as error:
    print("error:", error)
else:
    backend.prepare()  # says nothing twice
    print("cache:", jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture(autouse=True)
def cache_of_before():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def lines_of(**environment: str) -> list[str]:
    """What a new process says of its cache."""
    ours = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE],
        env=ours | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_owners
def test_a_missing_folder_is_made_for_this_user_alone(tmp_path):
    folder = tmp_path / "deep" / "cache"
    backend.prepare(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)
    backend.prepare(folder)


@needs_owners
@pytest.mark.parametrize("mode", [0o777, 0o772, 0o722, 0o1777])
def test_a_named_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(
        UserError, match=f"{folder}: other users may write .*chmod -R go-w {folder}"
    ):
        backend.prepare(folder)
    folder.chmod(0o755)
    backend.prepare(folder)


@needs_root
def test_a_group_of_others_may_not_write_but_a_group_of_this_user_alone_may(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o770)
    backend.prepare(folder)
    os.chown(folder, -1, OTHER)
    with pytest.raises(UserError, match="other users may write"):
        backend.prepare(folder)


@needs_root
def test_what_belongs_to_another_user_is_refused(tmp_path):
    folder = tmp_path / "cache"
    backend.prepare(folder)
    planted = folder / "jit_f-cache"
    planted.touch()
    os.chown(planted, OTHER, OTHER)
    with pytest.raises(UserError, match="other users may write"):
        backend.prepare(folder)
    planted.unlink()
    planted.symlink_to("elsewhere")
    os.chown(planted, OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(UserError, match="other users may write"):
        backend.prepare(folder)
    planted.unlink()
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(UserError, match="other users may write"):
        backend.prepare(folder)


@needs_root
def test_files_with_loose_permissions_count_only_where_others_can_reach_them(tmp_path):
    folder = tmp_path / "cache"
    backend.prepare(folder)
    (folder / "jit_f-cache").touch()
    os.chown(folder / "jit_f-cache", -1, OTHER)
    (folder / "jit_f-cache").chmod(0o664)  # of a user whose umask is 002
    backend.prepare(folder)
    folder.chmod(0o755)
    with pytest.raises(UserError, match="chmod -R go-w"):
        backend.prepare(folder)


def test_a_named_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/cache: cannot hold compiled programs: Not a dir"):
        backend.prepare(tmp_path / "file" / "cache")


def test_a_bucket_is_left_to_its_owner():
    backend.prepare("gs://bucket/cache")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"


@needs_owners
def test_the_default_folder_is_done_without_after_one_note_and_one_named_is_an_error(tmp_path):
    folder = tmp_path / "nanodet_jax"
    folder.mkdir()
    folder.chmod(0o777)
    note, cache = lines_of(XDG_CACHE_HOME=str(tmp_path))
    assert note.startswith(f"note: {folder}: other users may write") and "chmod" in note
    assert cache == "cache: None"
    (error,) = lines_of(JAX_COMPILATION_CACHE_DIR=str(folder))
    assert error.startswith(f"error: {folder}: other users may write")
    folder.chmod(0o700)
    assert lines_of(XDG_CACHE_HOME=str(tmp_path)) == [f"cache: {folder}"]


def test_two_processes_make_the_folder_at_once(tmp_path):
    folder = tmp_path / "deep" / "cache"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", PREPARE]
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    assert [one.communicate()[0] for one in started] == [f"cache: {folder}\n"] * 2

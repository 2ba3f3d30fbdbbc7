"""README and docs: links are valid, commands and snippets work, and the site builds.

Fenced blocks of shell and Python are run, unless a comment above a block gives a reason:

    <!-- needs: COCO -->            only parse its commands and run its imports
    <!-- run by: tests/test_x.py --> another test runs it
"""

import argparse
import ast
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax import config as configs
from nanodet_jax.cli import config_flags
from nanodet_jax.cli import main as cli
from nanodet_jax.io.weights import Weights, save_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from tests.runs import TINY_DATA

REPO = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "tests/**/*.md", ".github/**/*.md")
    for path in REPO.glob(pattern)
)
BLOCK = re.compile(r"(?:^<!-- (needs|run by): (.+) -->\n)?^```(\w*)\n((?:.*\n)*?)^```$", re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)
TINY_RUN = (*TINY_DATA, "--config.training.steps=2")
OTHER_PROGRAMS = {"cd", "git", "pre-commit", "pytest"}


class Block(NamedTuple):
    """Fenced block of a page."""

    page: Path
    line: int
    mark: str  # "needs", "run by", or nothing
    reason: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPO)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the fenced blocks of all pages in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(3)) + 1
            found.append(Block(page, line, match[1] or "", match[2] or "", match[3], match[4]))
    return [block for block in found if block.language in languages]


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command in a shell block, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"&&", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def anchors(page: Path) -> set[str]:
    """Return the link anchors of the headings of a page, as on GitHub and on the site."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_relative_links_refer_to_existing_files_and_headings(page):
    for first, second in LINK.findall(page.read_text()):
        target = first or second
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert REPO in file.parents, f"{target}: leaves the repository"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


class Parsed(Exception):
    """Raised instead of running a program, after it has accepted its arguments."""


@pytest.fixture
def parse(monkeypatch):
    """Check the arguments of a command with the program's own parser, without running it."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(parser, *args, **kwargs):
        parse_args(parser, *args, **kwargs)
        raise Parsed

    def check(args, overrides):
        if getattr(args, "config", None) not in (None, "", "CONFIG"):  # a placeholder
            config_flags.load_config(args.config, overrides)
        raise Parsed

    for command, _ in cli.COMMANDS.values():
        monkeypatch.setattr(command, "run", check)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(REPO)

    def call(words):
        program, *rest = words
        with pytest.raises(Parsed):
            if program == "nanodet-jax":
                code = cli.main(rest)
            elif rest[0] in ("train.py", "eval.py"):
                code = cli.main([rest[0].removesuffix(".py"), *rest[1:]])
            elif rest[0] == "-m":
                monkeypatch.setattr(sys, "argv", rest[1:])
                code = importlib.import_module(f"{rest[1]}.__main__").main()
            else:
                monkeypatch.setattr(sys, "argv", rest)
                code = runpy.run_path(rest[0], run_name="__main__")
            pytest.fail(f"{shlex.join(words)} ended with {code}")

    return call


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_are_accepted_by_their_programs(block, parse):
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for words in commands(block):
        if words[0] in ("nanodet-jax", "python"):
            parse(words)
        elif words[0] == "pip":
            named = re.findall(r"\[(.*?)\]", " ".join(words))
            assert {name for group in named for name in group.split(",")} <= extras
        else:
            assert words[0] in OTHER_PROGRAMS, f"{words[0]}: unknown program"


@pytest.mark.parametrize("block", blocks("sh", "python"), ids=str)
def test_blocks_that_are_not_run_here_state_why(block):
    if block.mark == "run by":
        assert (REPO / block.reason).is_file()
    elif not block.mark and block.language == "sh":
        assert all(words[0] == "nanodet-jax" for words in commands(block))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    sorted({block.page for block in blocks("sh") if not block.mark}),
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("shallow")
def test_commands_without_a_mark_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    flags = {"train": TINY_RUN, "eval": TINY_DATA}
    for block in blocks("sh"):
        for words in commands(block) if block.page == page and not block.mark else []:
            assert cli.main([*words[1:], *flags.get(words[1], ())]) == 0


@pytest.fixture
def street(tmp_path, monkeypatch):
    """A working folder with an image and with weights that detect something everywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(REPO / ".jax_cache"))
    cv2.imwrite("street.jpg", np.full((48, 64, 3), 128, np.uint8))
    model = configs.Model(num_classes=1, width=0.5, channels=32, stacked_convs=1)
    config = configs.Config(input_size=(64, 64), model=model)
    shapes = abstract_variables(build_model(model))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_weights("zeros.npz", Weights(zeros, config, ("cat",)))


@pytest.mark.usefixtures("shallow", "street")
@pytest.mark.parametrize("block", [block for block in blocks("python") if not block.mark], ids=str)
def test_snippets_run(block):
    text = block.text.replace('load("nanodet-plus-m_320")', 'load("zeros.npz")')
    exec(compile(text, str(block), "exec"), {})


@pytest.mark.parametrize(
    "block", [block for block in blocks("python") if block.mark == "needs"], ids=str
)
def test_imports_of_snippets_that_need_data_work(block):
    tree = ast.parse(block.text)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, str(block), "exec"), {})


@pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="needs the docs extra: mkdocs-material"
)
@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPO, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

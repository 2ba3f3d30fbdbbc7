"""Wording of code and docs: phrases that CONTRIBUTING.md asks not to use."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".cff"}
FOLDERS = ("nanodet_jax", "configs", "docs", "benchmarks", "tests", ".github", ".ci")
# Each phrase, and what to write instead.
BANNED = {
    r"\beats?\b": "takes, is the input of",
    r"\bfe(?:ed|d)s? on\b": "takes",
    r"\bways? out\b": "fix",
    r"(?<!--)(?<!args\.)\bjudg(?:es?|ed|ing)\b": "evaluator, evaluate",  # except the old flag
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:is|are|was|were|be|been) told\b": "is reported, is printed, is given",
    r"\btold (?:in|apart|by|once|when|where|unless)\b": "reported, distinguished",
    r"\brooms?\b": "space, memory",
    r"\bdoors?\b": "entry point",
    r"\bhouses?\b|\bhouseholds?\b|\bindoors\b": "keep, contain",
    r"\b(?:ratings|digests)\b": "metrics, checksums",
    r"\bwhoever\b|\bwhosoever\b": "name the actor",
    r"\bthereof\b|\btherein\b|\bwhereof\b|\bthereby\b": "of it, in it",
    r"\bhas? the say\b": "defines",
    r"\bof before\b": "the earlier ..., the last good ...",
    r"\bby harm\b": "by severity",
    r"\btid(?:y|ily|ied)\b": "name the cleanup",
    r"\bat hand\b": "available",
    r"\bwork(?:ed|s|ing)? off\b": "processed",
    r"\bcome true\b": "hold",
    r"\bfar above any use\b": "upper bound",
    r"\bas good as nothing\b": "has no effect",
    r"\bgo(?:es|ing)? on with\b": "resume, continue",
    r"\bthe same command goes on\b": "the same command resumes the run",
    r"\bsay(?:s)? so in (?:a|one) line\b": "prints one line",
    r"\bfor want of\b": "because ... is missing",
    r"\bso far as\b": "as far as",
    r"\balike\b": "in the same way, both",
    r"\bfar above\b": "name the bound",
    r"\blet go of\b": "release, close",
    r"\bby turns\b": "alternately",
    r"\bas it were\b": "leave it out",
}


def files() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*")
    # These two files list the phrases.
    listing = {Path(__file__), ROOT / "CONTRIBUTING.md"}
    return sorted(p for p in found if p.is_file() and p.suffix in SUFFIXES and p not in listing)


def hits(text: str) -> list[tuple[int, str, str]]:
    """Line, banned phrase and replacement of each hit; phrases may span a line break."""
    found = []
    for pattern, instead in BANNED.items():
        for match in re.finditer(pattern.replace(" ", r"[\s#]+"), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            found.append((line, " ".join(match.group().split()), instead))
    return sorted(found)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_no_banned_phrase(path):
    found = hits(path.read_text(encoding="utf-8"))
    assert not found, "\n".join(
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}; write: {instead}"
        for line, phrase, instead in found
    )


def test_banned_phrase_across_a_line_break_is_found():
    assert hits("# with a way\n# out of each") == [(1, "way # out", "fix")]

"""Escaping and truncation of text for a terminal, and output to a closed terminal."""

import io
import subprocess
import sys

import pytest

from nanodet_jax.terminal import LINE_LIMIT, NAME_LIMIT, join_first, printable, say, say_lines


@pytest.mark.parametrize(
    "text", ["", "person", "traffic light", "猫", "çédille", "emoji 👩‍🚀", "\\x1b"]
)
def test_printable_leaves_ordinary_text_unchanged(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("items", "expected"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c", "d"], "a, b and 2 more")],
)
def test_join_first_counts_the_rest(items, expected):
    assert join_first(items, 2) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("abc\u202egpj", "abc\\u202egpj"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("half \ud83d", "half \\ud83d"),
        ("bytes \udcff", "bytes \\udcff"),
    ],
)
def test_printable_escapes_control_characters(text, expected):
    assert printable(text) == expected


def test_printable_cuts_long_text_before_it_escapes():
    assert printable("x" * NAME_LIMIT) == "x" * NAME_LIMIT
    assert printable("x" * (NAME_LIMIT + 1)) == "x" * NAME_LIMIT + "..."
    assert printable("\0" * 10**6, limit=3) == "\\x00" * 3 + "..."


def test_say_prints_one_line_for_any_text():
    stream = io.StringIO()
    say("one\nerror: two" + "x" * LINE_LIMIT, stream)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("one\\nerror: two")


def test_say_lines_keeps_line_breaks(capsys):
    say_lines("a\x1b\nb")
    assert capsys.readouterr().out == "a\\x1b\nb\n"


SCRIPT = """
import sys
from nanodet_jax.terminal import say, tolerate_closed_output
tolerate_closed_output()
for i in range(20_000):
    say(f"line {i} caf\\u00e9")
    print("error", i, file=sys.stderr)
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_process_continues_after_its_output_is_closed(tmp_path, encoding):
    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(done)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path)},
    )
    first = process.stdout.readline().decode(encoding)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0 and done.read_text() == "done"
    assert first == ("line 0 café\n" if encoding == "utf-8" else "line 0 caf\\xe9\n")


def test_process_continues_when_its_output_goes_to_a_full_disk(tmp_path):
    done = tmp_path / "done"
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(done)],
            stdout=full,
            stderr=full,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        assert process.wait(60) == 0 and done.read_text() == "done"

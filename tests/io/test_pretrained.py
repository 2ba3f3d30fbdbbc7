"""Published weights by name: the table, and downloads from a server on this machine."""

import gc
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.cli import main as cli
from nanodet_jax.config import Config, Model
from nanodet_jax.errors import UserError
from nanodet_jax.io import pretrained, weights
from tests.io.test_torch_archive import save, tensor, torch  # noqa: F401

# The library requests closes the connection of a download when it is garbage, also during a test.
UNCLOSED = "unclosed <socket"
pytestmark = pytest.mark.filterwarnings(f"ignore:{UNCLOSED}:ResourceWarning")

REPO = Path(__file__).parents[2]
NAME = "tiny"
FILE = "tiny.ckpt"


class Server(ThreadingHTTPServer):
    """A server on the loopback interface. Paths without an entry in `files` are not found."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.sent: dict[str, int] = {}  # bytes that are sent before the connection is closed
        self.requests = Counter()
        self.may_answer = threading.Event()
        self.may_answer.set()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        self.server.may_answer.wait(20)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.sent.get(self.path)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()
    thread.join()
    with warnings.catch_warnings():  # otherwise, the warning would make a later test fail
        warnings.filterwarnings("ignore", UNCLOSED, ResourceWarning)
        gc.collect()


@pytest.fixture
def content(torch, tmp_path):  # noqa: F811
    """Bytes of a file with one tensor."""
    state = {"a": tensor("0", np.arange(50_000))}
    return save(tmp_path / "published.pth", state).read_bytes()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv(pretrained.ENVIRONMENT, str(tmp_path / "cache" / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def publish(server, folder, monkeypatch):
    """Function that serves a file, and enters its address in the table as NAME."""

    def call(content, file=FILE, sent=None):
        server.files[f"/{file}"] = content
        if sent is not None:
            server.sent[f"/{file}"] = sent
        monkeypatch.setitem(pretrained.ADDRESSES, NAME, f"{server.address}/{file}")

    return call


def kept(folder):
    """Return the names of the files in the folder, without the lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def failure(name=NAME):
    """Return the message of a download that fails; it must be one line."""
    with pytest.raises(UserError) as caught:
        pretrained.download(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_is_downloaded_once_and_then_used_without_a_network(
    publish, server, folder, content, capfd
):
    publish(content)
    path = pretrained.download(NAME)
    assert path == folder / FILE and path.read_bytes() == content
    assert kept(folder) == [FILE, f"{FILE}.sha256"]
    digest = hashlib.sha256(content).hexdigest()
    assert (folder / f"{FILE}.sha256").read_text() == f"{digest}  {FILE}\n"
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"downloading {NAME} from {server.address}/{FILE} to {folder}\n"
    server.files.clear()
    assert pretrained.download(NAME) == path
    assert capfd.readouterr() == ("", "")
    assert server.requests == {f"/{FILE}": 1}


def test_progress_shows_the_bytes_of_the_answer(publish, folder, content, monkeypatch):
    shown = []

    class Counter:
        n = 0

        def update(self, n):
            self.n += n
            shown.append(self.n)

    def progress(*arguments):
        shown.append(arguments)
        return nullcontext(Counter())

    monkeypatch.setattr(pretrained, "progress", progress)
    monkeypatch.setattr(pretrained, "CHUNK_SIZE", 60_000)
    publish(content)
    pretrained.download(NAME)
    size = len(content)
    # pooch counts the last chunk as whole, and then the total again.
    assert shown == [(size, f"download {NAME}", "B"), 60_000, 120_000, 180_000, size, size]


def test_interrupted_download_leaves_nothing_and_the_next_one_starts_again(
    publish, server, folder, content
):
    publish(content, sent=1000)
    message = failure()
    assert message == (
        f"{server.address}/{FILE}: cannot be downloaded (the connection was lost); download it "
        f"elsewhere and save it as {folder / FILE}"
    )
    assert kept(folder) == []
    server.sent.clear()
    assert pretrained.download(NAME).read_bytes() == content


def test_ctrl_c_during_a_download_leaves_nothing(publish, folder, content, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    publish(content)
    monkeypatch.setattr(pretrained, "progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrained.download(NAME)
    assert kept(folder) == []


def test_remains_of_a_killed_download_are_replaced(publish, folder, content):
    folder.mkdir(parents=True)
    (folder / f"{FILE}.part").write_bytes(content[:1000])
    publish(content)
    assert pretrained.download(NAME).read_bytes() == content
    assert kept(folder) == [FILE, f"{FILE}.sha256"]


@pytest.mark.parametrize("case", ["not found", "refused", "silent"])
def test_failed_download_names_the_address_and_the_file_to_save(
    publish, server, folder, content, monkeypatch, case
):
    address = f"{server.address}/{FILE}"
    publish(content)
    reason = "no connection"
    if case == "not found":
        server.files.clear()
        reason = "404 Not Found"
    elif case == "refused":
        address = f"http://127.0.0.1:1/{FILE}"
        monkeypatch.setitem(pretrained.ADDRESSES, NAME, address)
    else:
        monkeypatch.setattr(pretrained, "TIMEOUT_S", 0.2)
        server.may_answer.clear()
        reason = "no response within 0.2 s"
    path = folder / FILE
    assert failure() == (
        f"{address}: cannot be downloaded ({reason}); download it elsewhere and save it as {path}"
    )
    assert kept(folder) == []
    path.write_bytes(content)
    assert pretrained.download(NAME) == path
    assert kept(folder) == [FILE, f"{FILE}.sha256"]


def test_answer_that_is_not_weights_is_refused_and_not_kept(publish, server, folder):
    publish(b"<html>Log in to this network</html>")
    message = failure()
    start = f"{server.address}/{FILE}: not an intact weights file: is neither a zip archive "
    assert message.startswith(start)
    assert message.endswith(f"; try again, or save an intact copy as {folder / FILE}")
    assert kept(folder) == []


def test_file_whose_content_changes_after_the_download_is_refused(publish, folder, content):
    publish(content)
    path = pretrained.download(NAME)
    path.write_bytes(content[:-1] + b"x")
    message = (
        f"{path}: has changed since it was downloaded (its SHA-256 differs from the one in "
        f"{FILE}.sha256); delete it to download it again"
    )
    assert failure() == message
    path.unlink()
    assert pretrained.download(NAME).read_bytes() == content


def test_empty_record_is_written_again_after_a_check_of_the_file(publish, folder, content):
    publish(content)
    path = pretrained.download(NAME)
    record = folder / f"{FILE}.sha256"
    before = record.read_text()
    record.write_text("")
    pretrained.download(NAME)
    assert record.read_text() == before
    record.write_text("")
    path.write_bytes(content[:500])
    message = failure()
    assert message.startswith(f"{path}: not an intact weights file: damaged archive")
    assert message.endswith("; delete it to download it again")


def test_published_hash_in_the_name_is_checked(publish, server, folder, content):
    digest = hashlib.sha256(content).hexdigest()
    file = f"net-{digest[:8]}.pth"
    publish(content, file)
    path = pretrained.download(NAME)
    assert kept(folder) == [file]
    path.write_bytes(content[:-1])
    changed = hashlib.sha256(content[:-1]).hexdigest()[:8]
    wrong = f"its SHA-256 begins with {changed}, not with {digest[:8]} as in its name"
    assert failure() == f"{path}: {wrong}; delete it to download it again"
    path.unlink()
    publish(content[:-1], file)
    fix = f"try again, or save an intact copy as {path}"
    assert failure() == f"{server.address}/{file}: {wrong}; {fix}"
    assert kept(folder) == []


def wait_until(happened):
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_threads_that_ask_at_once_download_once(publish, server, folder, content, monkeypatch):
    lines = []
    monkeypatch.setattr(pretrained, "say", lambda line, stream: lines.append(line))
    monkeypatch.setattr(pretrained, "QUIET_WAIT_S", 0.01)
    publish(content)
    server.may_answer.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(pretrained.download, NAME) for _ in range(4)]
        wait_until(lambda: len(lines) == 4)
        server.may_answer.set()
        assert {each.result() for each in asked} == {folder / FILE}
    assert server.requests == {f"/{FILE}": 1}
    assert sorted(lines) == [
        f"downloading {NAME} from {server.address}/{FILE} to {folder}",
        *[f"waiting for another process that is downloading {FILE}"] * 3,
    ]


PROGRAM = """
import sys
from nanodet_jax.io import pretrained
pretrained.ADDRESSES["tiny"] = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
print(pretrained.download("tiny"))
"""


def test_processes_that_ask_at_once_download_once(publish, server, folder, content):
    publish(content)
    server.may_answer.clear()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{server.address}/{FILE}"],
            cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    wait_until(lambda: server.requests)
    server.may_answer.set()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert out == f"{folder / FILE}\n"
    assert server.requests == {f"/{FILE}": 1}
    assert (folder / FILE).read_bytes() == content


def test_folder_that_cannot_be_written_is_named(publish, folder, content):
    folder.parent.mkdir()
    folder.write_text("a file")
    publish(content)
    assert failure() == (
        f"{folder}: cannot be written to: File exists; set {pretrained.ENVIRONMENT} to a "
        "different folder"
    )


def test_folder_is_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv(pretrained.ENVIRONMENT, raising=False)
    monkeypatch.setattr(pretrained.pooch, "os_cache", lambda project: tmp_path / project)
    assert pretrained.folder() == tmp_path / "nanodet_jax" / "weights"
    monkeypatch.setenv(pretrained.ENVIRONMENT, "elsewhere")
    assert pretrained.folder() == Path("elsewhere")


def test_new_folders_are_private(publish, folder, content):
    publish(content)
    pretrained.download(NAME)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


def test_every_entry_that_takes_weights_takes_a_name(publish, folder, content):
    publish(content)
    np.testing.assert_array_equal(weights.load_entries(NAME)["a"], np.arange(50_000))
    assert weights.load_config_of(Path(NAME)) is None  # the file has none
    with pytest.raises(UserError, match=f"{FILE}: not a NanoDet"):
        weights.load_weights(NAME)


def test_published_weights_have_the_input_size_of_their_name(publish, monkeypatch, content):
    monkeypatch.setattr(weights, "_load", lambda path: weights.Weights({}, Config(), ()))
    publish(content)
    assert weights.load_weights(NAME).config.input_size == (320, 320)
    monkeypatch.setitem(pretrained.INPUT_SIZES, NAME, (416, 416))
    assert weights.load_weights(NAME).config.input_size == (416, 416)
    Path(NAME).touch()
    assert weights.load_weights(NAME).config.input_size == (320, 320)


def test_existing_path_wins_over_a_name(publish, server, folder, content):
    publish(content)
    model = Config(model=Model(width=0.5, num_classes=2))
    Path(NAME).mkdir()
    (Path(NAME) / weights.ABOUT).write_text(weights.describe(model, ()))
    assert weights.load_config_of(NAME).model.width == 0.5
    assert not server.requests


def test_classifier_is_not_downloaded_as_a_detector(folder):
    with pytest.raises(UserError, match=r"^resnet18: weights of a classifier, not of a detector; "):
        weights.load_weights("resnet18")
    with pytest.raises(UserError, match=r"; https://\S+ links to the files of the original$"):
        weights.load_weights("nanodet-m_320.pth")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("nanodet-plus-m320", " did you mean nanodet-plus-m_320?"),
        ("resnet-50", ""),  # a classifier
        ("nanodet-plus-m_320.pth", ""),  # a missing file
        ("runs/nanodet-plus-m_320", ""),
        ("mine", ""),
    ],
)
def test_unknown_name_is_refused_with_a_suggestion(folder, given, meant):
    with pytest.raises(UserError) as caught:
        weights.load_weights(given)
    assert str(caught.value) == (
        f"{given}: no such weights;{meant} use a .pth, .ckpt or .npz file, a workdir, or the name "
        "of published weights"
    )


def test_commands_report_a_failed_download_in_one_line(publish, server, folder, capsys):
    publish(b"")
    server.files.clear()
    expected = f"error: {server.address}/{FILE}: cannot be downloaded (404 Not Found); "
    Path("photo.png").touch()
    for command in (["convert", NAME, "out.npz"], ["eval", f"--weights={NAME}"]):
        assert cli.main(command) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(expected)
        assert lines[:-1] == [f"downloading {NAME} from {server.address}/{FILE} to {folder}"]


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_help_lists_the_names_of_detectors(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert all(f"{name}," in text for name in list(pretrained.DETECTORS)[:-1])


def test_table_has_one_file_per_name_at_https_addresses():
    files = [address.rpartition("/")[2] for address in pretrained.ADDRESSES.values()]
    assert len(set(files)) == len(files) == len(pretrained.DETECTORS) + len(pretrained.BACKBONES)
    for name, address in pretrained.ADDRESSES.items():
        assert re.fullmatch(r"https://[\w./-]+\.(pth|ckpt)", address), name
        assert not Path(name).suffix or Path(name).suffix not in weights.SUFFIXES
    assert set(pretrained.INPUT_SIZES) <= set(pretrained.DETECTORS)


def test_docs_list_the_names_and_files_of_the_table():
    page = (REPO / "docs" / "weights.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \|.* \[(\S+)\]\((\S+)\) \|$", page, re.M)
    assert rows == [
        (name, address.rpartition("/")[2], address)
        for name, address in pretrained.ADDRESSES.items()
    ]
    assert pretrained.ENVIRONMENT in page


def test_published_hashes_are_found_in_the_names_of_torchvision_and_mmdetection():
    for name, address in pretrained.ADDRESSES.items():
        hashed = address.startswith((pretrained.TORCHVISION, pretrained.GFL))
        assert bool(pretrained.PUBLISHED_HASH.search(address)) == hashed, name
    found = pretrained.PUBLISHED_HASH.search(pretrained.ADDRESSES["gfl-r50_1x"])
    assert found[1] == "25944287"
    assert pretrained.PUBLISHED_HASH.search(pretrained.ADDRESSES["resnet50"])[1] == "0676ba61"


def test_detectors_are_named_after_their_configs():
    from configs import coco

    for name in pretrained.DETECTORS:
        if name.startswith("nanodet"):
            size = coco.get_config(name).input_size
            assert pretrained.INPUT_SIZES.get(name, (320, 320)) == size

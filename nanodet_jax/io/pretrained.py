"""Published weights by name. Each file is downloaded once.

A file is kept in the user's cache folder, with its SHA-256 in a second file beside it. Later uses
check the file against its SHA-256, and need no network.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pooch
from filelock import FileLock, Timeout

from nanodet_jax.errors import UserError, first_line, reporting_write_errors
from nanodet_jax.files import atomic_write, open_regular
from nanodet_jax.io.torch_archive import read_state_dict
from nanodet_jax.progress import BYTES, Progress, progress
from nanodet_jax.terminal import printable, say

ENVIRONMENT = "NANODET_JAX_WEIGHTS_DIR"
TIMEOUT_S = 30.0  # to connect, and between two parts of the response
CHUNK_SIZE = 1 << 16  # bytes
QUIET_WAIT_S = 1.0  # before a process prints that it is waiting for another one

NANODET = "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1"
GFL = "https://download.openmmlab.com/mmdetection/v2.0/gfl"
TORCHVISION = "https://download.pytorch.org/models"
EFFICIENTNET_LITE = "https://github.com/RangiLyu/EfficientNet-Lite/releases/download/v1.0"
GHOSTNET = "https://raw.githubusercontent.com/huawei-noah/CV-Backbones/master/ghostnet_pytorch"

# Detectors trained on COCO. The variants in configs/coco.py have the same names.
DETECTORS = {
    "nanodet-plus-m_320": f"{NANODET}/nanodet-plus-m_320_checkpoint.ckpt",
    "nanodet-plus-m_416": f"{NANODET}/nanodet-plus-m_416_checkpoint.ckpt",
    "nanodet-plus-m-1.5x_320": f"{NANODET}/nanodet-plus-m-1.5x_320_checkpoint.ckpt",
    "nanodet-plus-m-1.5x_416": f"{NANODET}/nanodet-plus-m-1.5x_416_checkpoint.ckpt",
    "gfl-r50_1x": f"{GFL}/gfl_r50_fpn_1x_coco/gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth",
    "gfl-r50_2x": f"{GFL}/gfl_r50_fpn_mstrain_2x_coco/"
    "gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth",
    "gfl-r101_2x": f"{GFL}/gfl_r101_fpn_mstrain_2x_coco/"
    "gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth",
}
# Classifiers trained on ImageNet. Only their backbones are used. The publishers chose the names.
BACKBONES = {
    "shufflenet_v2_x0_5": f"{TORCHVISION}/shufflenetv2_x0.5-f707e7126e.pth",
    "shufflenet_v2_x1_0": f"{TORCHVISION}/shufflenetv2_x1-5666bf0f80.pth",
    "shufflenet_v2_x1_5": f"{TORCHVISION}/shufflenetv2_x1_5-3c479a10.pth",
    "shufflenet_v2_x2_0": f"{TORCHVISION}/shufflenetv2_x2_0-8be3c8ee.pth",
    "resnet18": f"{TORCHVISION}/resnet18-f37072fd.pth",
    "resnet34": f"{TORCHVISION}/resnet34-b627a593.pth",
    "resnet50": f"{TORCHVISION}/resnet50-0676ba61.pth",
    "resnet101": f"{TORCHVISION}/resnet101-63fe2227.pth",
    "resnet152": f"{TORCHVISION}/resnet152-394f9c45.pth",
    "mobilenet_v2": f"{TORCHVISION}/mobilenet_v2-b0353104.pth",
    "efficientnet_lite0": f"{EFFICIENTNET_LITE}/efficientnet_lite0.pth",
    "efficientnet_lite1": f"{EFFICIENTNET_LITE}/efficientnet_lite1.pth",
    "efficientnet_lite2": f"{EFFICIENTNET_LITE}/efficientnet_lite2.pth",
    "efficientnet_lite3": f"{EFFICIENTNET_LITE}/efficientnet_lite3.pth",
    "efficientnet_lite4": f"{EFFICIENTNET_LITE}/efficientnet_lite4.pth",
    "ghostnet": f"{GHOSTNET}/models/state_dict_73.98.pth",
}
ADDRESSES = DETECTORS | BACKBONES
# Input sizes other than 320 x 320, as (height, width). The files do not contain them.
INPUT_SIZES = {"nanodet-plus-m_416": (416, 416), "nanodet-plus-m-1.5x_416": (416, 416)}
# torchvision and mmdetection end the name of a file with the first digits of its SHA-256.
PUBLISHED_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")


def folder() -> Path:
    """Return the folder of downloaded weights: $NANODET_JAX_WEIGHTS_DIR or a cache folder."""
    configured = os.environ.get(ENVIRONMENT)
    return Path(configured) if configured else pooch.os_cache("nanodet_jax") / "weights"


def download(name: str) -> Path:
    """Return the path of a file of published weights. Download it if it is not in the folder yet.

    If several processes or threads ask for a file at once, one of them downloads it. An interrupted
    download leaves nothing behind. You may put a file into the folder instead of downloading it.

    Args:
      name: one of ADDRESSES.

    Raises:
      UserError: naming the address and the file, if the file cannot be downloaded or written, or
        differs from the published file or from the first download.
    """
    address = ADDRESSES[name]
    path = folder() / address.rpartition("/")[2]
    if not os.path.exists(path):  # False if the folder cannot be searched
        with _locked(path):
            if not os.path.exists(path):
                _download(name, address, path)
                return path
    _verify(path, path, str(path), "delete it to download it again")
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time download a file. Create its folder."""
    lock = FileLock(f"{path}.lock")
    try:
        # The parent also contains JAX's compiled programs. Other users must not have access to it.
        for each in (path.parent.parent, path.parent):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=QUIET_WAIT_S)
        except Timeout:
            say(f"waiting for another process that is downloading {path.name}", sys.stderr)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written to: {error.strerror or error}; set {ENVIRONMENT} to "
            "a different folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(name: str, address: str, path: Path) -> None:
    """Download a file under a temporary name, check it, and rename it."""
    say(f"downloading {name} from {address} to {path.parent}", sys.stderr)
    part = path.with_name(f"{path.name}.part")
    try:
        with reporting_write_errors(path):
            _fetch(name, address, part, path)
            fix = f"try again, or save an intact copy as {path}"
            _verify(part, path, address, fix, is_new=True)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(name: str, address: str, part: Path, path: Path) -> None:
    """Write the content of an address to the file `part`."""
    # Imported here because it changes the process's warning filters.
    from requests import RequestException

    with ExitStack() as stack:
        bar = _Bar(stack, f"download {name}")
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK_SIZE, timeout=TIMEOUT_S)
        try:
            get(address, str(part), None)
        except (RequestException, ValueError) as error:  # ValueError: an invalid length
            raise UserError(
                f"{address}: cannot be downloaded ({_reason(error)}); download it elsewhere and "
                f"save it as {path}"
            ) from error


class _Bar:
    """Show a download with `progress`, through the interface that pooch expects."""

    total = 0  # bytes, set by pooch when the response arrives; 0 = unknown

    def __init__(self, stack: ExitStack, what: str) -> None:
        self._stack, self._what = stack, what
        self._shown: Progress | None = None

    def update(self, n: int) -> None:
        """Count `n` more bytes. pooch passes the full chunk size even for a shorter last chunk."""
        if self._shown is None:
            self._shown = self._stack.enter_context(progress(self.total, self._what, BYTES))
        self._shown.update(min(n, self.total - self._shown.n) if self.total else n)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def _reason(error: Exception) -> str:
    """Return the cause of a failed download in a few words."""
    import requests

    match error:
        case requests.HTTPError(response=requests.Response() as response):
            return f"{response.status_code} {printable(str(response.reason))}"
        case requests.Timeout():
            return f"no response within {TIMEOUT_S:g} s"
        case requests.exceptions.SSLError() | requests.exceptions.ProxyError():
            return printable(first_line(error))
        case requests.ConnectionError():
            return "no connection"
        case requests.exceptions.ChunkedEncodingError():
            return "the connection was lost"
    return printable(first_line(error))


def _verify(file: Path, path: Path, where: str, fix: str, is_new: bool = False) -> None:
    """Check a file against its published SHA-256, or else against the one recorded beside it.

    If no SHA-256 is published, and the file is new or none is recorded, this function checks the
    content of the file and records its SHA-256.

    Args:
      file: the file to check.
      path: path of the file after the download.
      where: description of the file, for errors.
      fix: how to get an intact file, for errors.
      is_new: whether the file has just been downloaded.
    """
    record = path.with_name(f"{path.name}.sha256")
    try:
        with open_regular(file) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        recorded = record.read_text(errors="replace") if record.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from error
    if published := PUBLISHED_HASH.search(path.name):
        if not digest.startswith(published[1]):
            raise UserError(
                f"{where}: its SHA-256 begins with {digest[: len(published[1])]}, not with "
                f"{published[1]} as in its name; {fix}"
            )
    elif is_new or not recorded:
        try:
            read_state_dict(file)
        except UserError as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise UserError(f"{where}: not an intact weights file: {reason}; {fix}") from error
        with suppress(UserError), atomic_write(record) as beside:  # the folder may be read-only
            beside.write(f"{digest}  {path.name}\n".encode())  # the format of sha256sum
    elif recorded.split(" ")[0] != digest:
        raise UserError(
            f"{where}: has changed since it was downloaded (its SHA-256 differs from the one in "
            f"{record.name}); {fix}"
        )

"""TensorBoard event files, read back record by record."""

import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from nanodet_jax.errors import UserError
from nanodet_jax.training import tensorboard
from nanodet_jax.training.tensorboard import EventWriter


def events(folder):
    """Read the only event file of a folder."""
    (path,) = folder.iterdir()
    return read_events(path)


def read_events(path):
    """Read the records of a file: length, its checksum, data, their checksum."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        found.append(Event.FromString(data[place + 12 : place + 12 + length]))
        place += 12 + length + 4
    assert place == len(data)
    return found


def test_scalars_and_images_are_written_with_their_steps(tmp_path):
    writer = EventWriter(tmp_path / "deep" / "board", first_step=5)
    writer.add_scalars({"train/loss": 1.5, "train/learning_rate": 0.25}, 5)
    writer.add_image("val", np.zeros((4, 6, 3), np.uint8), 7)
    writer.add_scalars({"train/loss": 0.5}, 8)
    writer.close()
    version, start, *rest = events(tmp_path / "deep" / "board")
    assert version.file_version == "brain.Event:2"
    assert start.step == 5 and start.session_log.status == SessionLog.START
    loss, lr, image, later = ((event.step, event.summary.value[0]) for event in rest)
    assert (loss[0], loss[1].tag, loss[1].simple_value) == (5, "train/loss", 1.5)
    assert (lr[0], lr[1].tag, lr[1].simple_value) == (5, "train/learning_rate", 0.25)
    assert (image[0], image[1].tag) == (7, "val")
    assert (image[1].image.height, image[1].image.width) == (4, 6)
    assert (later[0], later[1].simple_value) == (8, 0.5)
    assert all(event.wall_time > 1.7e9 for event in rest)


def test_events_are_flushed_before_close(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "FLUSH_S", -1)
    writer = EventWriter(tmp_path / "board", first_step=1)
    writer.add_scalars({"train/loss": 2.0}, 3)
    assert events(tmp_path / "board")[-1].summary.value[0].simple_value == 2.0
    writer.close()


def test_folder_that_cannot_be_created_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/board: cannot be written"):
        EventWriter(tmp_path / "file" / "board", first_step=1)


def test_folder_that_is_a_symbolic_link_is_rejected(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "board").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        EventWriter(tmp_path / "board", first_step=1)
    assert not any((tmp_path / "elsewhere").iterdir())

"""Check whether the run in a workdir can be resumed, and describe what has changed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanodet_jax import config as configs
from nanodet_jax.config import Config, Training
from nanodet_jax.data.records import Source
from nanodet_jax.data.run_length import RunLength
from nanodet_jax.errors import UserError
from nanodet_jax.files import read_json
from nanodet_jax.io.checkpoint import CHECKPOINTS
from nanodet_jax.io.checkpoint_files import saved_steps
from nanodet_jax.io.weights import ABOUT, ABOUT_LIMIT, describe, load_description
from nanodet_jax.runtime import distributed
from nanodet_jax.terminal import join_first

DATA = "data.json"  # names of the images of the current leg
DATA_LIMIT = 1 << 28  # bytes; enough for the names of a million images
# Data counts as the same if it has at least this fraction of the previous training images.
MIN_SHARED_IMAGES = 0.5
# Fields that do not affect what is trained.
IGNORED_FIELDS = ("config.training.resume", "config.distributed.process_index")


class ImageNames(NamedTuple):
    """Names of the training and validation images of a leg."""

    train: list[str]
    val: list[str]

    @property
    def digest(self) -> str:
        """Digest of the names, to check whether two legs have the same images."""
        text = json.dumps(self)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class PreviousLeg(NamedTuple):
    """The previous leg of a run."""

    config: Config
    class_names: tuple[str, ...]
    steps_per_epoch: int  # 0 = unknown: the run was started by an earlier version
    offset: int  # see `RunLength`
    names: ImageNames | None  # None if unknown


def has_checkpoint(workdir: Path) -> bool:
    """Return whether the workdir contains a run to resume, which needs no initial weights."""
    return bool(saved_steps(workdir / CHECKPOINTS))


def image_names(train: Source, val: Source | None) -> ImageNames:
    """Return the names of all images."""
    return ImageNames(*(
        [] if source is None else [source.name(index) for index in range(len(source))]
        for source in (train, val)
    ))  # fmt: skip


def previous_leg(workdir: Path) -> PreviousLeg | None:
    """Return the leg that `about.json` describes; None if the file is missing or damaged.

    A damaged description does not stop a run. Checkpoints are verified separately, and their arrays
    must fit the network.
    """
    about = workdir / ABOUT
    if not about.exists():
        return None
    try:
        config, class_names = load_description(about)
        leg = read_json(about, ABOUT_LIMIT).get("leg", {})  # earlier versions wrote none
        numbers = leg.get("steps_per_epoch", 0), leg.get("offset", 0)
        if not all(type(number) is int and abs(number) < 2**31 for number in numbers):
            raise UserError(f"{about}: steps_per_epoch and offset must be integers")
    except (UserError, OSError, ValueError, AttributeError) as error:
        distributed.say(f"note: {error}; the file will be rewritten")
        return None
    return PreviousLeg(config, class_names, numbers[0], numbers[1], read_names(workdir))


def read_names(workdir: Path) -> ImageNames | None:
    """Return the names of the images of the last leg; None if they are missing or damaged."""
    try:
        content = read_json(workdir / DATA, DATA_LIMIT)
        names = ImageNames(content["train"], content["val"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = all(isinstance(part, list) and all(isinstance(name, str) for name in part)
                for part in names)  # fmt: skip
    return names if known else None


def check_same_run(
    workdir: Path,
    previous: PreviousLeg,
    config: Config,
    class_names: tuple[str, ...],
    names: ImageNames,
) -> None:
    """Check that a run can be resumed with this config and data.

    Raises:
      UserError: naming the difference, and the flag that allows it if there is one.
    """
    saved = previous.config
    resume = (
        "use a different --workdir, resume that run with its own config (its command is in "
        f"{workdir}/history.jsonl)"
    )
    fields = dict(configs.values_of(config.model, "config.model"))
    different = [
        (name, old, fields[name])
        for name, old in configs.values_of(saved.model, "config.model")
        if old != fields[name]
    ]
    for what, old, new in (
        ("classes", previous.class_names, class_names),
        *different,
        ("config.training.optimizer", saved.training.optimizer, config.training.optimizer),
        ("gradient clipping", saved.training.clip_norm > 0, config.training.clip_norm > 0),
        ("weight averaging", saved.training.ema_decay > 0, config.training.ema_decay > 0),
    ):
        if old != new:
            raise UserError(
                f"{workdir} holds a run with {what} {old}, not {new}; "
                f"{resume}, or start from its weights with "
                f"--config.training.init_weights={workdir}"
            )
    if config.training.resume == "new_data":
        return
    allow = f"{resume}, or set --config.training.resume=new_data to resume with the new data"
    if saved.input_size != config.input_size:
        raise UserError(
            f"{workdir} holds a run with config.input_size {saved.input_size}, not "
            f"{config.input_size}; {allow}"
        )
    if previous.names is not None:
        before = set(previous.names.train)
        left = len(before & set(names.train))
        if left < MIN_SHARED_IMAGES * len(before):
            raise UserError(
                f"{workdir} holds a run on different data: {left} of its {len(before)} training "
                f"images are among the {len(names.train)} images of this config; {allow}"
            )


def offset_after(previous: PreviousLeg, config: Config, step: int, steps_per_epoch: int) -> int:
    """Return the `RunLength.offset` with which a run continues at the same image in its epoch.

    Args:
      previous: the previous leg.
      config: config of the next leg.
      step: steps done.
      steps_per_epoch: steps per epoch of the next leg.
    """
    before = previous.config.data.batch_size
    batch_size = config.data.batch_size
    # Earlier versions did not record the steps per epoch. Compute them from the current number of
    # images.
    per_epoch = previous.steps_per_epoch or max(1, steps_per_epoch * batch_size // before)
    if (batch_size, steps_per_epoch) == (before, per_epoch):
        return previous.offset
    epoch, batch = divmod(step + previous.offset, per_epoch)
    within = min(batch * before // batch_size, steps_per_epoch - 1)
    return epoch * steps_per_epoch + within - step


def finished_message(workdir: Path, training: Training, step: int, length: RunLength) -> str:
    """Return a message saying that the run is finished, and how to train longer."""
    schedule = {
        "cosine": "the learning rate first rises again, as the cosine becomes longer",
        "multistep": "the learning rate falls at the same milestones",
    }[training.schedule]
    longer = "steps" if training.steps else "epochs"
    more = "set --config.training.more_epochs=N: it adds N epochs after the end of the schedule"
    if training.more_epochs:
        more = (
            f"raise --config.training.more_epochs={training.more_epochs}: it counts all epochs "
            "after the end of the schedule"
        )
    return (
        f"{workdir}: already finished at step {step} of {length.total_steps}; nothing is changed. "
        f"To train longer, {more}, at the last learning rate. Or raise "
        f"--config.training.{longer}: {schedule}"
    )


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ, by full name, each with its old and its new value."""
    before = dict(configs.values_of(old))
    return {
        name: (before[name], value)
        for name, value in configs.values_of(new)
        if value != before[name] and name not in IGNORED_FIELDS
    }


def describe_changes(
    fields: dict[str, tuple[Any, Any]], before: ImageNames | None, after: ImageNames
) -> Iterator[str]:
    """Yield a line for each field and each split of the data that differs from the last leg."""
    for name, (old, new) in fields.items():
        yield f"{name}: {_text(old)} -> {_text(new)}"
    if before is None:
        return
    for split, old_names, new_names in zip(("training", "validation"), before, after):
        parts = [
            f"{len(names)} {verb} ({join_first(names, 3)})"
            for verb, names in (
                ("added", _missing(new_names, old_names)),
                ("removed", _missing(old_names, new_names)),
            )
            if names
        ]
        if parts:
            yield f"{split} images: {', '.join(parts)}; a renamed image counts as both"


def _missing(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _text(value: Any) -> str:
    return repr(value) if value in ("", ()) else str(value)


def description(config: Config, class_names: tuple[str, ...], workdir: Path) -> dict[str, Any]:
    """Return the part of `about.json` that describes the weights.

    Raises:
      UserError: if the class names are too long for the file.
    """
    text = describe(config, class_names)
    if len(text) > ABOUT_LIMIT:
        raise UserError(
            f"{workdir / ABOUT}: {len(class_names)} class names take {len(text) / 1e6:.0f} MB; the "
            f"limit is {ABOUT_LIMIT / 1e6:.0f} MB: shorten the names"
        )
    content: dict[str, Any] = json.loads(text)
    return content

"""Config of a training run: optimizer, schedule, checkpoints and processes."""

from dataclasses import dataclass, field
from typing import Literal

from nanodet_jax.config.section import Section
from nanodet_jax.config.values import Fields

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["multistep", "cosine"]
Resume = Literal["same_data", "new_data"]


@dataclass(slots=True)
class LrMultipliers(Section):
    """Factors on the learning rate by part of the network; 0 freezes a part."""

    backbone: float = 1.0
    """Factor for the backbone."""

    neck: float = 1.0
    """Factor for the neck."""

    head: float = 1.0
    """Factor for the head."""

    guidance: float = 1.0
    """Factor for the assign guidance module."""

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.training.lr_multipliers")
        fields.not_negative("backbone", "neck", "head", "guidance")


@dataclass(slots=True)
class Training(Section):
    """Optimizer, schedule, evaluation and checkpoints."""

    epochs: int = 1
    """Passes over the training images."""

    steps: int = 0
    """Total number of steps, in place of epochs; 0 = use epochs."""

    more_epochs: int = 0
    """Epochs to add after the end of the schedule, at its last learning rate. To continue a
    finished run, start it again with a larger value."""

    resume: Resume = "same_data"
    """new_data allows a run to resume on a different dataset with the same classes, or with a
    different input_size; same_data refuses both."""

    accumulate: int = 1
    """Number of micro-batches that each batch is split into, to save memory. Their gradients are
    summed."""

    optimizer: Optimizer = "sgd"
    """Update rule, as in PyTorch."""

    learning_rate: float = 0.01
    """Learning rate after warm-up, before the schedule lowers it."""

    lr_base_batch_size: int = 0
    """Batch size that learning_rate is meant for. The rate is multiplied by data.batch_size /
    lr_base_batch_size; 0 = no scaling."""

    momentum: float = 0.9
    """sgd: momentum."""

    weight_decay: float = 1e-4
    """Weight decay on every parameter. sgd adds it to the gradient; adamw decouples it."""

    no_norm_decay: bool = False
    """Exempt the scale and bias of normalization layers from weight decay."""

    lr_multipliers: LrMultipliers = field(default_factory=LrMultipliers)
    """Factors on the learning rate by part of the network."""

    clip_norm: float = 0.0
    """Upper bound on the global norm of the gradient; 0 = no clipping."""

    schedule: Schedule = "multistep"
    """How the learning rate decreases from epoch to epoch."""

    milestones: tuple[int, ...] = ()
    """multistep: epochs after which the learning rate is multiplied by gamma."""

    gamma: float = 0.1
    """multistep: factor on the learning rate at each milestone."""

    final_fraction: float = 0.05
    """cosine: lower bound of the learning rate, as a fraction of learning_rate."""

    warmup_steps: int = 0
    """Steps of the linear warm-up; 0 = none."""

    warmup_ratio: float = 0.1
    """Fraction of the learning rate at which the warm-up starts."""

    ema_decay: float = 0.0
    """Decay of the exponential moving average of weights and batch statistics, which is then
    evaluated and exported; 0 = none."""

    detach_epoch: int = 0
    """Number of epochs, from the start, in which the guidance loss also trains the backbone and the
    neck. After that, it trains only the guidance module."""

    init_weights: str = ""
    """Weights to start from: a .pth, .ckpt or .npz file, a workdir, or the name of published
    weights, which are downloaded once; "" = random."""

    init_backbone: str = ""
    """Classifier whose weights the backbone starts from: a .pth file, or the name of a published
    classifier, such as resnet18, which is downloaded once. The neck and the head start from random
    weights. Most classifiers expect model.channel_order=rgb, but the original uses bgr with them.
    "" = none."""

    seed: int = 0
    """Seed of initial weights, data order and augmentation."""

    max_skipped: int = 10
    """Stop the run after this many consecutive steps whose loss, gradients or batch statistics are
    not finite. Such steps do not update the weights."""

    eval_every: int = 10
    """Epochs between evaluations. The last step is also evaluated, unless data.val=none."""

    checkpoint_every: int = 1
    """Epochs between checkpoints. A checkpoint is also saved before each evaluation."""

    keep_every: int = 0
    """Epochs between checkpoints that are never deleted; 0 = keep only the newest and the best."""

    log_every: int = 10
    """Steps between log lines."""

    devices: int = 0
    """Devices to train on, per process; 0 = all."""

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.training")
        fields.require("steps", self.steps >= 0, "must be positive, or 0 to count epochs")
        fields.require("epochs", self.steps > 0 or self.epochs > 0, "must be positive")
        fields.positive("accumulate", "learning_rate")
        fields.require(
            "lr_base_batch_size",
            self.lr_base_batch_size >= 0,
            "must be positive, or 0 for no scaling",
        )
        fields.require("devices", self.devices >= 0, "must be positive, or 0 for all")
        fields.positive("eval_every", "checkpoint_every", "log_every", "max_skipped")
        fields.not_negative(
            "more_epochs", "weight_decay", "clip_norm", "warmup_steps", "keep_every", "detach_epoch"
        )
        fields.require("ema_decay", 0 <= self.ema_decay < 1, "must be at least 0 and less than 1")
        fields.require(
            "init_backbone",
            not (self.init_backbone and self.init_weights),
            f"remove it, because config.training.init_weights={self.init_weights!r} includes a "
            "backbone; or remove init_weights to start from the classifier",
        )
        fields.require("seed", 0 <= self.seed < 2**32, "must be at least 0 and less than 2**32")
        self.lr_multipliers.check()


@dataclass(slots=True)
class Distributed(Section):
    """The processes that train together, on one machine or several."""

    coordinator: str = ""
    """HOST:PORT of process 0; auto = detect it under Slurm, Open MPI, Kubernetes or on a TPU pod;
    "" = a single process."""

    num_processes: int = 1
    """Number of processes. Ignored with coordinator=auto."""

    process_index: int = 0
    """Index of this process, from 0. Ignored with coordinator=auto."""

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.distributed")
        fields.require(
            "coordinator",
            self.coordinator in ("", "auto") or _is_address(self.coordinator),
            "must be HOST:PORT, or auto",
        )
        fields.positive("num_processes")
        fields.require(
            "num_processes",
            self.num_processes == 1 or bool(self.coordinator),
            "needs config.distributed.coordinator, which the processes connect to",
        )
        fields.require(
            "process_index",
            0 <= self.process_index < self.num_processes,
            f"must be at least 0 and less than config.distributed.num_processes="
            f"{self.num_processes}",
        )


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 2**16

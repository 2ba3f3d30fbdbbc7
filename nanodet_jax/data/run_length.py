"""Number of training steps in an epoch and in a run, and the position in the data at a step."""

from typing import NamedTuple

from nanodet_jax.config import Config
from nanodet_jax.errors import UserError


class RunLength(NamedTuple):
    """Length of a training run.

    Only whole batches count. The images left over at the end of a shuffled epoch are dropped, as in
    the original.

    The position of a batch in the data is the number of batches of the current size that precede
    it. This is the number of completed steps plus `offset`. `offset` is 0 unless earlier steps of
    the run had batches of a different size.
    """

    steps_per_epoch: int
    total_steps: int
    offset: int = 0
    more_steps: int = 0  # part of `total_steps`, added by `config.training.more_epochs`

    @property
    def epochs(self) -> int:
        """Number of epochs in the run; the last one may be incomplete."""
        return self.epoch_of(self.total_steps)

    @property
    def schedule_epochs(self) -> int:
        """Number of epochs that the learning-rate schedule covers."""
        return max(1, self.epoch_of(self.total_steps - self.more_steps))

    def epoch_of(self, step: int) -> int:
        """Return the epoch that `step` is in, both counted from 1."""
        return -(-(step + self.offset) // self.steps_per_epoch)

    def is_due(self, every_epochs: int, step: int) -> bool:
        """Return whether `step` ends the run or an epoch.

        Only epochs whose numbers are divisible by `every_epochs` count.
        """
        whole_epochs, rest = divmod(step + self.offset, self.steps_per_epoch)
        return step == self.total_steps or (rest == 0 and whole_epochs % every_epochs == 0)


def run_length(config: Config, num_images: int, offset: int = 0) -> RunLength:
    """Return the length of a run on `num_images` training images.

    `config.training.steps` takes precedence over `config.training.epochs` if it is not 0.

    Raises:
      UserError: if the images do not fill one batch.
    """
    training = config.training
    per_epoch = steps_per_epoch(num_images, config.data.batch_size)
    steps = training.steps or training.epochs * per_epoch - offset
    more = training.more_epochs * per_epoch
    return RunLength(per_epoch, steps + more, offset, more)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of whole batches in `num_images` training images.

    Raises:
      UserError: if the images do not fill one batch.
    """
    if num_images < batch_size:
        raise UserError(
            f"config.data.batch_size={batch_size}: must be at most the number of training images, "
            f"{num_images}"
        )
    return num_images // batch_size

"""Length of a run, in steps and epochs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Length:
    """Total number of steps, and what follows from it.

    Attributes:
      steps_per_epoch: whole batches in the training data.
      total_steps: at which the run ends; need not be a multiple of `steps_per_epoch`.
    """

    steps_per_epoch: int
    total_steps: int

    @property
    def epochs(self) -> int:
        """Number of epochs; the last one may be incomplete."""
        return self.epoch_of(self.total_steps)

    def epoch_of(self, step: int) -> int:
        """Epoch of a step; both count from 1."""
        return -(-step // self.steps_per_epoch)

    def is_due(self, every_epochs: int, step: int) -> bool:
        """Whether `step` ends the run, or an epoch whose number is divisible by `every_epochs`."""
        whole_epochs, rest = divmod(step, self.steps_per_epoch)
        return step == self.total_steps or (rest == 0 and whole_epochs % every_epochs == 0)

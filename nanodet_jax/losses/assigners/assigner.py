"""Interface of the assigners. They decide which prior learns which box, and how losses use this.

To add an assigner, write a class like `atss.ATSS` in a file of this package, add its name and its
settings to `config.Assigner`, and build it in `criterion.build_assigner`.

Dimensions: B batch, P priors, G ground-truth slots, C classes, R = reg_max + 1.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Array, Float

from nanodet_jax.boxes import EPSILON, Priors
from nanodet_jax.structures import GroundTruth, Predictions, Targets


class Assigner(ABC):
    """Assignment policy of a `Criterion`. Its methods are pure functions of arrays."""

    giou_epsilon: ClassVar[float] = EPSILON  # lower bound of the divisors in the giou loss

    @abstractmethod
    def assign(
        self, predictions: Predictions, ground_truth: GroundTruth, priors: Priors
    ) -> Targets:
        """Assign the priors of one image to its boxes.

        Args:
          predictions: class logits [P, C] and box logits [P, 4, R] of the last branch. No gradient
            may flow into them.
          ground_truth: G slots in input pixels.
          priors: P priors.

        Returns:
          `gt_index` [P] int32 and `overlap` [P] float32.
        """

    @abstractmethod
    def box_unit(self, strides: Float[Array, "P 1"]) -> Float[Array, "P 1"]:
        """Return the unit of the boxes in ious and in the giou loss, in pixels, for each prior.

        The unit matters only for areas smaller than `boxes.EPSILON` or `giou_epsilon`.
        """

    @abstractmethod
    def quality(
        self,
        targets: Targets,
        predicted_boxes: Float[Array, "P 4"],
        target_boxes: Float[Array, "P 4"],
    ) -> Float[Array, "P"]:
        """Return the quality that a branch learns to predict, without a gradient.

        Args:
          targets: targets of one image.
          predicted_boxes: boxes of the branch, in `box_unit`.
          target_boxes: boxes of the ground truth, in `box_unit`.

        Returns:
          Labels of the quality focal loss, in [0, 1]. Labels of priors that are not positive are
          unused.
        """

    @abstractmethod
    def count_samples(self, positives: Float[Array, "B"]) -> Float[Array, ""]:
        """Return the divisor of the quality focal loss, given the number of positives per image.

        The counts of parts of a batch add up to the count of the batch. `Criterion` divides by at
        least 1.
        """

    @abstractmethod
    def box_divisor(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """Return the divisor of the box losses, given the sum of their weights over a batch."""

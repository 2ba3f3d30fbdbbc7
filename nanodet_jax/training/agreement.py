"""Check that all processes of a run have the same config, data and weights."""

import jax

from nanodet_jax.config import Config, values_of
from nanodet_jax.data.records import Source
from nanodet_jax.io import checksums
from nanodet_jax.runtime import distributed
from nanodet_jax.state import TrainState

# Fields that may differ between processes: the process index, paths, and loader settings.
OWN_FIELDS = {
    "config.distributed.process_index",
    "config.training.init_weights",
    "config.training.init_backbone",
    *(f"config.data.{name}" for name in (
        "train_images", "train_annotations", "val_images", "val_annotations", "root", "sources",
        "workers", "cache", "cache_gb",
    )),
}  # fmt: skip


def check_agreement(config: Config, train: Source, val: Source | None, state: TrainState) -> None:
    """Check that the processes of this run agree. Every process must call this function.

    Raises:
      UserError: in every process, naming the field, data or state that differs.
    """
    if jax.process_count() == 1:
        return
    facts = {name: value for name, value in values_of(config) if name not in OWN_FIELDS} | {
        "number of training images": len(train),
        "number of validation images": 0 if val is None else len(val),
        "list of classes": [category.name for category in train.categories],
        "start step": int(state.step),
        "initial state": checksums.digest_of_tree(state),
    }
    distributed.must_agree(facts)

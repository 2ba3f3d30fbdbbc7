"""The schema of every config: dataclasses, overridden by flags like `--config.data.batch_size=16`.

A file in `configs/` returns a `Config`; `check` rejects invalid values before anything is
compiled. Values that follow from other fields or from the data, such as the channels of the
backbone or the steps per epoch, are computed.

A field with a closed set of values has a `Literal` type or, for floats and for names from a table,
`one_of` metadata. The checks, the errors and the field reference in `docs/config.md` derive the
choices from it. Each field is described by the string below it, from which
`nanodet_jax.config.reference` generates the field reference.
"""

from nanodet_jax.config.data import (
    FILE_FIELDS,
    Augment,
    Cache,
    Data,
    Format,
    PixelStage,
    Validation,
)
from nanodet_jax.config.losses import Assigner, AssignerName, Compat, Loss
from nanodet_jax.config.model import (
    BACKBONE_STRIDES,
    BACKBONES,
    LAST_CHANNEL_BACKBONES,
    MODEL_LIMITS,
    NORM_GROUPS,
    SCALABLE_BACKBONES,
    Activation,
    Model,
    Neck,
)
from nanodet_jax.config.renamed import rename_flags
from nanodet_jax.config.schema import (
    MAX_SIDE,
    Config,
    Precision,
    check,
    from_json,
    num_priors,
    to_json,
    values_of,
)
from nanodet_jax.config.training import Distributed, LrMultipliers, Optimizer, Schedule, Training

__all__ = [
    "BACKBONES",
    "BACKBONE_STRIDES",
    "FILE_FIELDS",
    "LAST_CHANNEL_BACKBONES",
    "MAX_SIDE",
    "MODEL_LIMITS",
    "NORM_GROUPS",
    "SCALABLE_BACKBONES",
    "Activation",
    "Assigner",
    "AssignerName",
    "Augment",
    "Cache",
    "Compat",
    "Config",
    "Data",
    "Distributed",
    "Format",
    "Loss",
    "LrMultipliers",
    "Model",
    "Neck",
    "Optimizer",
    "PixelStage",
    "Precision",
    "Schedule",
    "Training",
    "Validation",
    "check",
    "from_json",
    "num_priors",
    "rename_flags",
    "to_json",
    "values_of",
]

"""Your own images with boxes in COCO's json layout, fine-tuned from published weights.

    python train.py --config configs/custom.py --workdir runs/mine \\
        --config.data.train_images=DIR --config.data.train_annotations=train.json \\
        --config.data.val_images=DIR --config.data.val_annotations=val.json \\
        --config.training.init_weights=nanodet-m_320.pth

With `configs/custom.py:nanodet-plus-m` and nanodet-plus-m_320.pth it is NanoDet-Plus, more
accurate and several times slower to train. The classes come from the json. With nanodet-m 1,000
images are 62 steps an epoch; 40 epochs of them take about 20 minutes on two CPU cores and a few
on a GPU.
"""

from nanodet_jax.config import Config
from nanodet_jax.configs import voc


def get_config(variant: str = "nanodet-m") -> Config:
    """The recipe of configs/voc.py on COCO's layout; the same variants."""
    config = voc.get_config(variant)
    config.name = config.name.replace("voc", "custom")
    config.data.format = "coco"
    return config

"""Your own images with boxes in COCO's json layout, fine-tuned from published weights.

    python train.py --config configs/custom.py --workdir runs/mine \\
        --config.data.train_images=DIR --config.data.train_annotations=train.json \\
        --config.data.val_images=DIR --config.data.val_annotations=val.json \\
        --config.training.init_weights=nanodet-m_320.pth

The classes come from the json. 1,000 images are 62 steps an epoch; 40 epochs of them take about
20 minutes on two CPU cores and a few on a GPU.
"""

from configs import voc
from nanodet_jax.config import Config


def get_config() -> Config:
    """The recipe of configs/voc.py on COCO's layout."""
    config = voc.get_config()
    config.name = "custom"
    config.data.format = "coco"
    return config

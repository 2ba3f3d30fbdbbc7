"""Fine-tune published weights on your own images with COCO json annotations.

    python train.py --config configs/custom.py --workdir runs/mine \\
        --config.data.root=FOLDER --config.training.init_weights=nanodet-m_320.pth
    python train.py --config configs/custom.py --workdir runs/mine \\
        --config.data.train_images=DIR --config.data.train_annotations=train.json \\
        --config.data.val_images=DIR --config.data.val_annotations=val.json \\
        --config.training.init_weights=nanodet-m_320.pth

FOLDER has one of the layouts that `docs/training.md` lists, such as that of a Roboflow export. The
json file defines the classes. `configs/custom.py:nanodet-plus-m` with nanodet-plus-m_320.pth trains
NanoDet-Plus, which is more accurate but takes several times as long to train.

Cost: with 1,000 images, an epoch has 62 steps. With nanodet-m, 40 epochs take about 20 minutes on
two CPU cores and a few minutes on a GPU. Expected AP: see `configs/voc.py` for an example.
"""

from nanodet_jax.config import Config
from nanodet_jax.configs import voc


def get_config(variant: str = "nanodet-m") -> Config:
    """Return a variant of `configs/voc.py`, changed to read COCO json.

    Raises:
      UserError: if there is no such variant.
    """
    config = voc.get_config(variant)
    config.name = config.name.replace("voc", "custom")
    config.data.format = "coco"
    return config

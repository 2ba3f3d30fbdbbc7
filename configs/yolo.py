"""Your own images with boxes in YOLO's layout, fine-tuned from published weights.

    python train.py --config configs/yolo.py --workdir runs/mine \\
        --config.data.root=FOLDER --config.training.init_weights=nanodet-m_320.pth

FOLDER holds `data.yaml`, which names the classes and the folders of images:

    {train: images/train, val: images/val, names: [cat, dog]}

The boxes of images/train/a.jpg are in labels/train/a.txt. Exports of Roboflow are read as they are.
With `configs/yolo.py:nanodet-plus-m` and nanodet-plus-m_320.pth it is NanoDet-Plus; how long a run
takes is in `configs/custom.py`.
"""

from nanodet_jax.config import Config
from nanodet_jax.configs import voc


def get_config(variant: str = "nanodet-m") -> Config:
    """The recipe of configs/voc.py on YOLO's layout; the same variants."""
    config = voc.get_config(variant)
    config.name = config.name.replace("voc", "yolo")
    config.data.format = "yolo"
    return config

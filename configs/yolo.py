"""Fine-tune published weights on your own images with YOLO label files.

    python train.py --config configs/yolo.py --workdir runs/mine \\
        --config.data.root=FOLDER --config.training.init_weights=nanodet-m_320.pth

FOLDER contains `data.yaml`, which names the classes and the image folders:

    {train: images/train, val: images/val, names: [cat, dog]}

The boxes of images/train/a.jpg are in labels/train/a.txt. Roboflow exports can be used unchanged.

`configs/yolo.py:nanodet-plus-m` with nanodet-plus-m_320.pth trains NanoDet-Plus. Cost: see
`configs/custom.py`. Expected AP: see `configs/voc.py` for an example.
"""

from nanodet_jax.config import Config
from nanodet_jax.configs import voc


def get_config(variant: str = "nanodet-m") -> Config:
    """Return a variant of `configs/voc.py`, changed to read YOLO label files.

    Raises:
      UserError: if there is no such variant.
    """
    config = voc.get_config(variant)
    config.name = config.name.replace("voc", "yolo")
    config.data.format = "yolo"
    return config

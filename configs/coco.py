"""COCO 2017, by the original's recipes.

    python train.py --config configs/coco.py:nanodet-m_320 --workdir runs/m \\
        --config.data.train_images=coco/train2017 \\
        --config.data.train_annotations=coco/annotations/instances_train2017.json \\
        --config.data.val_images=coco/val2017 \\
        --config.data.val_annotations=coco/annotations/instances_val2017.json

An epoch of 117,266 or so images is 610 steps of 192. The original's AP on val2017, which starts
from ImageNet weights of the backbone (here: `--config.training.init_weights`):

    variant          input  epochs  AP of the original   GMAC   parameters
    nanodet-m_320      320     280   20.6                 0.342   0.95 M
    nanodet-m_416      416     280   23.5                 0.578   0.95 M
    nanodet-m-0.5x     320     180   13.5                 0.139   0.28 M
    nanodet-m-1.5x     320     280   23.5                 0.696   2.07 M
    nanodet-m-1.5x_416 416     280   26.8                 1.177   2.07 M
"""

from dataclasses import replace

from nanodet_jax.config import Assigner, Augment, Config, Data, Model, Training
from nanodet_jax.errors import UserError

VARIANTS = ("nanodet-m_320", "nanodet-m_416", "nanodet-m-0.5x", "nanodet-m-1.5x",
            "nanodet-m-1.5x_416")  # fmt: skip


def get_config(variant: str = "nanodet-m_320") -> Config:
    """One of VARIANTS; each is a difference to the first."""
    config = Config(
        name="nanodet-m_320",
        input_size=(320, 320),
        data=Data(
            format="coco",
            train_images="coco/train2017",
            train_annotations="coco/annotations/instances_train2017.json",
            val_images="coco/val2017",
            val_annotations="coco/annotations/instances_val2017.json",
            batch_size=192,
            workers=8,
            keep_ratio=True,
        ),
        augment=Augment(
            scale=(0.6, 1.4),
            translate=0.2,
            flip=0.5,
            brightness=0.2,
            contrast=(0.6, 1.4),
            saturation=(0.5, 1.2),
        ),
        model=Model(width=1.0, channels=96),
        assigner=Assigner(ignore_threshold=0.0),  # the original learns crowds as background
        training=Training(
            epochs=280,
            optimizer="sgd",
            learning_rate=0.14,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="multistep",
            milestones=(240, 260, 275),
            warmup_steps=300,
            warmup_ratio=0.1,
            eval_every=10,
            keep_every=50,
        ),
    )
    config.name = variant
    match variant:
        case "nanodet-m_320":
            pass
        case "nanodet-m_416":
            config.input_size = (416, 416)
            config.augment.scale = (0.5, 1.4)
        case "nanodet-m-0.5x":
            config.model.width = 0.5
            config.data.batch_size = 96
            config.augment.scale = (0.5, 1.5)
            config.training = replace(
                config.training,
                epochs=180,
                learning_rate=0.07,
                milestones=(130, 160, 175),
                warmup_steps=1000,
                warmup_ratio=1e-5,
            )
        case "nanodet-m-1.5x":
            config.model = Model(width=1.5, channels=128)
        case "nanodet-m-1.5x_416":
            config.model = Model(width=1.5, channels=128)
            config.input_size = (416, 416)
            config.data.batch_size = 176
            config.augment.scale = (0.5, 1.4)
        case _:
            raise UserError(f"configs/coco.py has no variant {variant!r}; it has {VARIANTS}")
    return config

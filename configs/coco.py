"""COCO 2017 with the original's recipes.

    python train.py --config configs/coco.py:nanodet-m_320 --workdir runs/m \\
        --config.data.train_images=coco/train2017 \\
        --config.data.train_annotations=coco/annotations/instances_train2017.json \\
        --config.data.val_images=coco/val2017 \\
        --config.data.val_annotations=coco/annotations/instances_val2017.json

Cost: an epoch of 117,266 images has 610 steps of 192 images for nanodet-m, and 1,221 steps of
96 images for nanodet-plus-m. The AP on val2017 listed below is the value that the original
reports. The original starts from a backbone pretrained on ImageNet; here, choose the weights to
start from with `--config.training.init_weights`. GMAC is billions of multiply-adds per image.

    variant             input  epochs  AP    GMAC   parameters
    nanodet-m_320       320    280     20.6  0.342  0.95 M
    nanodet-m_416       416    280     23.5  0.578  0.95 M
    nanodet-m-0.5x      320    180     13.5  0.139  0.27 M
    nanodet-m-1.5x      320    280     23.5  0.696  2.07 M
    nanodet-m-1.5x_416  416    280     26.8  1.177  2.07 M

For NanoDet-Plus, the last two columns are the parameters of the deployed network, and of the
network during training, which includes the guidance module:

    nanodet-plus-m_320       320  300  27.0  0.451  1.20 M  4.33 M
    nanodet-plus-m_416       416  300  30.4  0.762  1.20 M  4.33 M
    nanodet-plus-m-1.5x_320  320  300  29.9  0.879  2.48 M  7.96 M
    nanodet-plus-m-1.5x_416  416  300  34.1  1.486  2.48 M  7.96 M
"""

from dataclasses import replace

from nanodet_jax.config import Assigner, Augment, Config, Data, Model, Training
from nanodet_jax.errors import UserError

VARIANTS = ("nanodet-m_320", "nanodet-m_416", "nanodet-m-0.5x", "nanodet-m-1.5x",
            "nanodet-m-1.5x_416", "nanodet-plus-m_320", "nanodet-plus-m_416",
            "nanodet-plus-m-1.5x_320", "nanodet-plus-m-1.5x_416")  # fmt: skip


def plus_model(width: float = 1.0, channels: int = 96) -> Model:
    """Return the model section of NanoDet-Plus, with its guidance module."""
    return Model(
        width=width,
        neck="ghost_pan",
        extra_level=True,
        channels=channels,
        kernel_size=5,
        prior_offset=0.0,
        guidance_channels=2 * channels,
    )


def plus_assigner() -> Assigner:
    """Return the assigner section of NanoDet-Plus, with ignore regions turned off."""
    return Assigner(name="dynamic_soft_label", topk=13, ignore_threshold=0.0)


def make_plus(config: Config) -> None:
    """Change the recipe of nanodet-m_320 into the recipe of nanodet-plus-m_320, in place."""
    config.data.batch_size = 96
    config.data.keep_ratio = False
    config.augment.stretch_x = config.augment.stretch_y = (0.8, 1.2)
    config.model = plus_model()
    config.assigner = plus_assigner()
    config.training = Training(
        epochs=300,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        clip_norm=35.0,
        ema_decay=0.9998,
        detach_epoch=10,
        schedule="cosine",
        final_fraction=0.05,
        warmup_steps=500,
        warmup_ratio=1e-4,
        eval_every=10,
        keep_every=50,
    )


def get_config(variant: str = "nanodet-m_320") -> Config:
    """Return the config of one of VARIANTS. All are modifications of the first one.

    Raises:
      UserError: if there is no such variant.
    """
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
        assigner=Assigner(ignore_threshold=0.0),  # the original treats crowd regions as background
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
        case "nanodet-plus-m_320":
            make_plus(config)
        case "nanodet-plus-m_416":
            make_plus(config)
            config.input_size = (416, 416)
        case "nanodet-plus-m-1.5x_320":
            make_plus(config)
            config.model = plus_model(1.5, 128)
        case "nanodet-plus-m-1.5x_416":
            make_plus(config)
            config.model = plus_model(1.5, 128)
            config.input_size = (416, 416)
        case _:
            raise UserError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")
    return config

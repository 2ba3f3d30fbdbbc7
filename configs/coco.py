"""COCO 2017 with the original's recipes.

    python train.py --config configs/coco.py:nanodet-m_320 --workdir runs/m \\
        --config.data.train_images=coco/train2017 \\
        --config.data.train_annotations=coco/annotations/instances_train2017.json \\
        --config.data.val_images=coco/val2017 \\
        --config.data.val_annotations=coco/annotations/instances_val2017.json

Cost: an epoch of 117,266 images has 610 steps of 192 images for nanodet-m, and 1,221 steps of
96 images for nanodet-plus-m. The AP on val2017 listed below is the value that the original
reports. The original starts from a backbone pretrained on ImageNet; here, choose one with
`--config.training.init_backbone`, for example shufflenet_v2_x1_0. GMAC is billions of multiply-adds
per image.

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

Other backbones and necks of the original, and GFL of mmdetection, with the AP that mmdetection
reports. The columns are those of the first table; for RepVGG, the last two describe the deployed
network:

    nanodet-t_320                   320       190  21.7  0.464    1.33 M
    nanodet-g_416                   416       190  22.9  2.090    3.79 M
    nanodet-EfficientNet-Lite0_320  320       190  24.7  0.821    3.10 M
    nanodet-EfficientNet-Lite1_416  416       170  30.3  1.933    3.99 M
    nanodet-EfficientNet-Lite2_512  512       135  32.6  3.405    4.69 M
    nanodet-RepVGG-A0_416           416       170  27.8  5.631    6.74 M
    gfl-r50_1x                      800x1333  12   40.2  217.156  32.44 M
    gfl-r50_2x                      800x1333  24   42.9  217.156  32.44 M
    gfl-r101_2x                     800x1333  24   44.7  296.703  51.43 M

The network of PaddleDetection's PicoDet-S (2022), with the recipe and the assigner of NanoDet-Plus
but without guidance. It has not been trained on COCO with this recipe. PaddleDetection reports an
AP of 29.1 for its own recipe, which has a different assigner, classification loss and optimizer:

    picodet-s_320        320  300  -     0.481  1.19 M

PaddleDetection reports 1.18 M parameters and 0.97 GFLOPs. This implementation has 1,186,492
parameters, and 0.976 GFLOPs if each multiply-add and each output of a batch norm counts as two
operations.
"""

from dataclasses import replace

from nanodet_jax.config import Assigner, Augment, Config, Data, Model, Training
from nanodet_jax.errors import UserError

VARIANTS = ("nanodet-m_320", "nanodet-m_416", "nanodet-m-0.5x", "nanodet-m-1.5x",
            "nanodet-m-1.5x_416", "nanodet-plus-m_320", "nanodet-plus-m_416",
            "nanodet-plus-m-1.5x_320", "nanodet-plus-m-1.5x_416", "nanodet-t_320",
            "nanodet-g_416", "nanodet-EfficientNet-Lite0_320", "nanodet-EfficientNet-Lite1_416",
            "nanodet-EfficientNet-Lite2_512", "nanodet-RepVGG-A0_416", "gfl-r50_1x", "gfl-r50_2x",
            "gfl-r101_2x", "picodet-s_320")  # fmt: skip


def resolve(variant: str) -> str:
    """Return the full name of a variant. The part after the last underscore may be left out.

    If several variants match, this is the first one: for "nanodet-m", nanodet-m_320.

    Raises:
      UserError: if there is no such variant.
    """
    for name in VARIANTS:
        if variant and variant in (name, name.rpartition("_")[0]):
            return name
    raise UserError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")


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


def recipe(
    training: Training,
    epochs: int,
    learning_rate: float,
    milestones: tuple[int, ...],
    warmup_steps: int = 500,
    warmup_ratio: float = 0.01,
) -> Training:
    """Return `training` with a different length, learning rate and schedule."""
    return replace(
        training,
        epochs=epochs,
        learning_rate=learning_rate,
        milestones=milestones,
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
    )


def make_efficientnet(
    config: Config, backbone: str, channels: int, stacked_convs: int, reg_max: int = 10
) -> None:
    """Replace the network by one with an EfficientNet-Lite, and set its normalization of images.

    `config` is changed in place.
    """
    config.model = Model(
        backbone=backbone,
        channels=channels,
        activation="relu6",
        stacked_convs=stacked_convs,
        reg_max=reg_max,
    )
    config.data.mean, config.data.std = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)


def make_gfl(config: Config, backbone: str) -> None:
    """Change the recipe of nanodet-m_320 into mmdetection's gfl_r50_fpn_1x_coco, in place."""
    config.input_size = (800, 1333)
    config.data.batch_size = 16
    config.data.resize = "short_side"
    config.augment = Augment(flip=0.5)
    config.model = Model(
        backbone=backbone,
        channel_order="rgb",
        frozen_stride=4,
        norm_eval=True,
        neck="fpn",
        fpn_levels=2,
        channels=256,
        activation="relu",
        head="simple_conv",
        stacked_convs=4,
        reg_max=16,
        prior_offset=0.0,
    )
    config.assigner = Assigner(name="gfl", anchor_scale=8.0, ignore_threshold=0.0)
    # Warm-up reaches the full rate at step 499, as in mmdetection.
    config.training = recipe(config.training, 12, 0.01, (8, 11), 499, 0.001)
    config.training.eval_every = config.training.keep_every = 1


def make_multiscale(config: Config) -> None:
    """Change a 1x recipe of GFL into the 2x recipe, in place: short sides of 480 to 800 pixels."""
    config.augment.short_side = (480, 800)
    config.training = replace(config.training, epochs=24, milestones=(16, 22))


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

    `variant` may be shortened, as in `resolve`.

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
    config.name = variant = resolve(variant)
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
        case "nanodet-t_320":
            config.model = Model(neck="tan", channels=128)
            config.data.batch_size = 160
            config.augment = replace(config.augment, contrast=(0.8, 1.2), saturation=(0.8, 1.2))
            config.training = recipe(config.training, 190, 0.14, (140, 170, 180, 185))
        case "nanodet-g_416":
            config.model = Model(
                backbone="custom_csp",
                channels=128,
                depthwise_head=False,
                stacked_convs=1,
                reg_max=10,
            )
            config.input_size = (416, 416)
            config.data.batch_size = 128
            config.assigner.anchor_scale = 8.0
            config.training = recipe(config.training, 190, 0.1, (130, 160, 175, 185))
        case "nanodet-EfficientNet-Lite0_320":
            make_efficientnet(config, "efficientnet_lite0", channels=96, stacked_convs=2, reg_max=7)
            config.data.batch_size = 150
            config.training = recipe(config.training, 190, 0.15, (140, 170, 180, 185))
        case "nanodet-EfficientNet-Lite1_416":
            make_efficientnet(config, "efficientnet_lite1", channels=128, stacked_convs=3)
            config.input_size = (416, 416)
            config.data.batch_size = 100
            config.augment.scale = (0.5, 1.5)
            config.assigner.anchor_scale = 8.0
            config.training = recipe(config.training, 170, 0.07, (130, 150, 160, 165))
        case "nanodet-EfficientNet-Lite2_512":
            make_efficientnet(config, "efficientnet_lite2", channels=128, stacked_convs=4)
            config.input_size = (512, 512)
            config.data.batch_size = 60
            config.augment.scale = (0.5, 1.5)
            config.training = recipe(config.training, 135, 0.06, (90, 110, 120, 130), 300, 0.1)
        case "nanodet-RepVGG-A0_416":
            config.model = Model(
                backbone="repvgg_a0",
                backbone_last_channels=512,
                channels=128,
                activation="relu",
                depthwise_head=False,
                reg_max=10,
            )
            config.input_size = (416, 416)
            config.data.batch_size = 100
            config.augment.scale = (0.5, 1.5)
            config.assigner.anchor_scale = 8.0
            config.training = recipe(config.training, 170, 0.07, (130, 150, 160, 165))
        case "gfl-r50_1x":
            make_gfl(config, "resnet50")
        case "gfl-r50_2x":
            make_gfl(config, "resnet50")
            make_multiscale(config)
        case "gfl-r101_2x":
            make_gfl(config, "resnet101")
            make_multiscale(config)
        case "picodet-s_320":
            make_plus(config)
            config.model = Model(
                backbone="pplcnet_x0_75",
                neck="lc_pan",
                head="pico",
                extra_level=True,
                kernel_size=5,
                activation="hard_swish",
            )
            config.training.detach_epoch = 0  # there is no guidance
    return config

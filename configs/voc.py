"""Fine-tune published weights on a folder in Pascal VOC format.

    python train.py --config configs/voc.py --workdir runs/mine \\
        --config.data.root=FOLDER --config.training.init_weights=nanodet-m_320.pth
    python train.py --config configs/voc.py:nanodet-plus-m --workdir runs/mine-plus \\
        --config.data.root=FOLDER --config.training.init_weights=nanodet-plus-m_320.pth

FOLDER contains `train/` and `val/`, each with `images/` and `annotations/`, or has another of the
layouts that `docs/training.md` lists, such as that of VOC2007. The classes are all names in the
annotations of the training split, in alphabetical order, unless `--config.data.classes=cat,dog`
lists them.

Cost: BCCD (292 images, 3 kinds of blood cells) takes 720 steps in 40 epochs, about 6 minutes on two
CPU cores with nanodet-m. Expected AP on BCCD: 0.571 (seed 0), and 0.573, 0.570 and 0.574 with the
original's warping (`--config.compat.pixel_index_warp=True`). The original reaches 0.569 with these
settings.
"""

from dataclasses import replace

from nanodet_jax.config import Compat, Config, Data, Training
from nanodet_jax.configs import coco

# Names of the configs of these variants. Other names are derived from the variant.
ALIASES = {"nanodet-m": "voc", "nanodet-plus-m": "voc-plus"}


def get_config(variant: str = "nanodet-m") -> Config:
    """Return a config with the network of a variant of `configs/coco.py`, for fine-tuning.

    The recipe uses AdamW and a cosine schedule, and fixes the original's bugs. The input size may
    be left out of the name of the variant, as in `coco.resolve`. Variants of GFL also keep their
    augmentation.

    Raises:
      UserError: if there is no such variant.
    """
    network = coco.get_config(variant)
    config = Config(
        name=ALIASES.get(variant, f"voc-{variant.removeprefix('nanodet-')}"),
        input_size=network.input_size,
        data=Data(
            format="voc",
            batch_size=16,
            mean=network.data.mean,
            std=network.data.std,
            resize=network.data.resize,
        ),
        augment=replace(coco.get_config().augment, stretch_x=(0.8, 1.2), stretch_y=(0.8, 1.2)),
        model=network.model,
        assigner=replace(network.assigner, ignore_threshold=0.5),
        compat=Compat(priors_of_any_box=False, keep_lost_boxes=False, pixel_index_warp=False),
        training=Training(
            epochs=40,
            optimizer="adamw",
            learning_rate=5e-4,
            weight_decay=0.05,
            clip_norm=35.0,
            schedule="cosine",
            final_fraction=0.05,
            warmup_steps=50,
            warmup_ratio=1e-4,
            eval_every=10,
        ),
    )
    if network.data.resize == "short_side":
        config.augment = network.augment
    if network.model.guidance_channels:
        config.training.ema_decay = 0.9998
        config.training.detach_epoch = 10
    return config

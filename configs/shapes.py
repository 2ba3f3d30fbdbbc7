"""Drawn shapes: the embedded default. No download; learned on a laptop's CPU in minutes.

python train.py --config configs/shapes.py --workdir runs/shapes
"""

from nanodet_jax.config import Augment, Config, Data, Model, Training


def get_config() -> Config:
    """A NanoDet of half width at 160 x 160, 4 classes."""
    return Config(
        name="shapes",
        input_size=(160, 160),
        data=Data(format="shapes", train_size=4000, val_size=200, batch_size=16),
        augment=Augment(scale=(0.8, 1.2), translate=0.1, flip=0.5, brightness=0.1),
        model=Model(width=0.5, channels=64),
        training=Training(
            epochs=5,
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=0.05,
            clip_norm=35.0,
            schedule="cosine",
            warmup_steps=100,
            eval_every=1,
        ),
    )

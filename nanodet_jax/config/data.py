"""Config of the data: sources, loading and augmentation."""

from dataclasses import dataclass
from typing import Literal, get_args

from nanodet_jax.config.section import Section
from nanodet_jax.config.values import Fields

Format = Literal["coco", "voc", "yolo", "tfds", "shapes"]
Cache = Literal["none", "ram", "device"]
PixelStage = Literal["host", "device"]
Validation = Literal["given", "none"]
Resize = Literal["to_input", "short_side"]
# Fields that select files, which data.format=shapes does not read.
FILE_FIELDS = ("root", "train_images", "train_annotations", "val_images", "val_annotations")


@dataclass(slots=True)
class Data(Section):
    """Where images and boxes come from, and how they reach the device."""

    format: Format = "coco"
    """Layout of the dataset. shapes draws its own images and reads no files."""

    train_images: str = ""
    """coco: folder of the training images."""

    train_annotations: str = ""
    """coco: json file with the training boxes."""

    val_images: str = ""
    """coco: folder of the validation images."""

    val_annotations: str = ""
    """coco: json file with the validation boxes. tfds: json file that detections are evaluated
    against (optional)."""

    root: str = ""
    """Folder of the dataset, in one of the layouts listed in docs/training.md. coco: replaces the
    four paths above. yolo: may also be the data.yaml itself. tfds: the data_dir, or the dataset's
    folder."""

    sources: tuple[str, ...] = ()
    """Several datasets at once, each as FORMAT:ROOT, such as voc:cells,yolo:more/data.yaml. They
    replace format and root."""

    name: str = "coco/2017:1.1.0"
    """tfds: name of the dataset with its version; "" if root is the dataset's folder."""

    classes: tuple[str, ...] = ()
    """Names of the classes to learn, in label order; boxes of other classes are left out. () = all
    classes of the data, in their order (voc: sorted by name)."""

    merge: tuple[str, ...] = ()
    """Classes to rename or merge, each as OLD:NEW, such as rbc:cell,wbc:cell. The other fields
    refer to the new names."""

    ignore: tuple[str, ...] = ()
    """Names of classes whose boxes become ignore regions: neither objects nor background."""

    exclude_empty_classes: bool = False
    """Leave out classes without training boxes."""

    val: Validation = "given"
    """given: validate on the validation images of the dataset, or on those that val_fraction splits
    off. none: train without validation; the last checkpoint is the result."""

    val_fraction: float = 0.0
    """Fraction of the training images that become the validation images, 0 to 0.5; the validation
    images of the dataset are then not used. The split depends on the file names and classes of the
    images, and keeps copies of an image together. It is saved in split.json in the workdir. 0 = no
    split."""

    val_seed: int = 0
    """Seed of the split by val_fraction. A different seed selects different validation images."""

    train_size: int = 4000
    """shapes: number of training images."""

    val_size: int = 200
    """shapes: number of validation images."""

    follow_links: bool = False
    """Follow symbolic links that lead out of the data folder."""

    max_megapixels: float = 50.0
    """Largest image that is decoded, in millions of pixels. Larger ones count as unreadable."""

    max_unreadable: float = 0.01
    """Fraction of a split's images that may be unreadable, 0 to 1. Training replaces such images
    with others; evaluation counts them as images without detections."""

    batch_size: int = 32
    """Images per step, over all devices and processes."""

    workers: int = 2
    """Threads that decode and augment images, per process."""

    cache: Cache = "ram"
    """Where decoded training images are kept. device requires augment=device and a single
    process."""

    cache_gb: float = 4.0
    """Size limit of the cache in GB. With cache=ram, images beyond it are decoded each time; with
    cache=device, all images must fit."""

    augment: PixelStage = "host"
    """Where pixels are warped and their colors changed, as config.augment specifies."""

    canvas: float = 2.0
    """augment=device: images larger than this multiple of the input are downscaled once, on the
    host, before they are sent to the device."""

    max_boxes: int = 0
    """Ground-truth slots per image; 0 = the largest number of boxes in any training image."""

    keep_ratio: bool = False
    """resize=to_input: resize images without distortion and pad them; False stretches them to
    input_size."""

    resize: Resize = "to_input"
    """to_input: resize images to input_size, as keep_ratio specifies. short_side: as in
    mmdetection, scale each image without distortion until its shorter side equals the smaller value
    of input_size or its longer side equals the larger value, whichever comes first. Batches are
    then padded to one of at most five sizes, to limit the number of compiled programs. This padding
    does not change the results. short_side requires augment=host and a network of GFL."""

    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    """Mean that is subtracted from the pixels: blue, green, red, which is the channel order of
    OpenCV and of the published weights."""

    std: tuple[float, float, float] = (57.375, 57.12, 58.395)
    """Standard deviation that the pixels are divided by: blue, green, red."""

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.data")
        fields.positive("batch_size", "train_size", "val_size", "max_megapixels", "workers")
        fields.require("val_fraction", 0 <= self.val_fraction <= 0.5, "must be between 0 and 0.5")
        fields.require(
            "val_fraction",
            self.val != "none" or self.val_fraction == 0,
            "splits off validation images, but data.val=none uses none; remove one of the two",
        )
        if self.format == "shapes" and not self.sources:
            for name in FILE_FIELDS:
                fields.require(
                    name,
                    not getattr(self, name),
                    "data.format=shapes reads no files; use --config voc, yolo or custom, or set "
                    "data.format",
                )
        self._check_names(fields)
        fields.require("max_unreadable", 0 <= self.max_unreadable <= 1, "must be between 0 and 1")
        fields.require(
            "cache_gb", self.cache_gb > 0, "must be positive; to cache nothing, use data.cache=none"
        )
        fields.require(
            "cache", self.cache != "device" or self.augment == "device", "needs data.augment=device"
        )
        fields.require("canvas", self.canvas >= 1, "must be at least 1 (the size of the input)")
        fields.require(
            "max_boxes",
            self.max_boxes >= 0,
            "must be positive, or 0 for the largest number of boxes in any training image",
        )
        fields.require("std", all(value > 0 for value in self.std), "must be positive")

    def _check_names(self, fields: Fields) -> None:
        for name in ("classes", "ignore", "sources"):
            values = getattr(self, name)
            repeated = [value for value in values if values.count(value) > 1]
            found = f"{repeated[0]!r} is listed twice" if repeated else ""
            fields.require(name, not repeated, f"{found}; list it once")
        pairs = [entry.partition(":") for entry in self.merge]
        fields.require(
            "merge", all(old and new for old, _, new in pairs), "use OLD:NEW, such as rbc:cell"
        )
        olds = [old for old, _, _ in pairs]
        fields.require("merge", len(set(olds)) == len(olds), "list each OLD once")
        both = [name for name in self.ignore if name in self.classes]
        fields.require(
            "ignore", not both, "a class is also in data.classes; list it in only one of the two"
        )
        formats = [entry.partition(":")[0] for entry in self.sources if entry.partition(":")[2]]
        known = get_args(Format)
        fields.require(
            "sources",
            len(formats) == len(self.sources) and all(name in known for name in formats),
            f"use FORMAT:ROOT, such as voc:cells; formats are {', '.join(known)}",
        )


@dataclass(slots=True)
class Augment(Section):
    """Training-time transforms; every factor is drawn uniformly, independently for each image."""

    short_side: tuple[int, int] = (0, 0)
    """data.resize=short_side: range of the length of the shorter side in pixels; 0,0 = the smaller
    value of input_size. With data.resize=short_side, the flip is the only other geometric transform
    that is allowed."""

    perspective: float = 0.0
    """Largest magnitude, per pixel, of the two coefficients of the perspective distortion."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor that resizes the image."""

    stretch_x: tuple[float, float] = (1.0, 1.0)
    """Range of an additional factor on the width."""

    stretch_y: tuple[float, float] = (1.0, 1.0)
    """Range of an additional factor on the height."""

    rotation: float = 0.0
    """Largest rotation in degrees, in either direction."""

    shear: float = 0.0
    """Largest shear in degrees, in either direction."""

    translate: float = 0.0
    """Largest translation as a fraction of width and height, in either direction."""

    flip: float = 0.0
    """Probability of a horizontal flip."""

    brightness: float = 0.0
    """Largest brightness offset, in either direction, for pixels in [0, 1]. Brightness, contrast
    and saturation are each applied with probability 1/2, without clipping."""

    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the contrast factor."""

    saturation: tuple[float, float] = (1.0, 1.0)
    """Range of the saturation factor."""

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.augment")
        fields.in_range("scale", "stretch_x", "stretch_y", "contrast", "saturation")
        fields.not_negative("perspective", "rotation", "shear", "translate", "brightness")
        low, high = self.short_side
        fields.require(
            "short_side",
            0 < low <= high or low == high == 0,
            "use LOW,HIGH in pixels with 0 < LOW <= HIGH, or 0,0",
        )
        fields.require("flip", 0 <= self.flip <= 1, "must be between 0 and 1")

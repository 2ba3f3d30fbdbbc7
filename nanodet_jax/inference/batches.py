"""Group prepared images into batches of few shapes, so that few programs are compiled."""

from collections.abc import Iterable, Iterator

from nanodet_jax.data.pipeline import EvaluationBatch, Prepared, stack

MAX_BATCH = 8  # images
# Limit on the input pixels of a batch: one image of 2048 x 2048, or eight of 640 x 640.
BATCH_PIXELS = 1 << 22
WAITING_PIXELS = 4 * BATCH_PIXELS  # limit for images that wait for a full batch; 200 MB


def batches_by_shape(images: Iterable[Prepared]) -> Iterator[EvaluationBatch]:
    """Yield every image once, in batches of one shape each; indices count the images from 0.

    The number of images in a batch is a power of two, limited by `MAX_BATCH` and `BATCH_PIXELS`.
    The last rows of a batch may be padding. Images of at most `WAITING_PIXELS` in total wait for
    their batches to fill up.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Prepared]]] = {}
    for index, item in enumerate(images):
        shape = item.image.shape
        waiting.setdefault(shape, []).append((index, item))
        if len(waiting[shape]) == _largest_batch(shape):
            yield stack(waiting.pop(shape), _largest_batch(shape))
        elif sum(len(group) * _pixels(shape) for shape, group in waiting.items()) > WAITING_PIXELS:
            fullest = max(waiting, key=lambda shape: len(waiting[shape]) * _pixels(shape))
            yield _stack(waiting.pop(fullest))
    for group in waiting.values():
        yield _stack(group)


def _stack(group: list[tuple[int, Prepared]]) -> EvaluationBatch:
    return stack(group, 1 << (len(group) - 1).bit_length())  # the next power of two


def _largest_batch(shape: tuple[int, ...]) -> int:
    fitting = max(1, BATCH_PIXELS // _pixels(shape))
    return min(MAX_BATCH, 1 << (fitting.bit_length() - 1))  # the previous power of two


def _pixels(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1]

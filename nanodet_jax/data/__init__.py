"""Datasets: sources, classes, splits, loading and augmentation."""

import logging

# With the jaxlib of jax 0.7, Grain warns on import that it cannot profile worker processes. This
# project starts no worker processes.
_logger = logging.getLogger("absl")
_was_disabled, _logger.disabled = _logger.disabled, True
try:
    import grain as grain
finally:
    _logger.disabled = _was_disabled

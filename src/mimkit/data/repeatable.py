"""Whether views and data are functions of their keys, which exact resume and any number of workers rest on."""

import contextlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.data.images import ImageList
from mimkit.data.memory import ImagesInMemory
from mimkit.data.samples import Samples
from mimkit.errors import BadImage
from mimkit.randomness import sample_keys
from mimkit.records import name_of

EXAMPLES, VIEWS, MOST_TRIED = 4, 8, 100


def require_repeatable(samples: Samples) -> None:
    """Make several views of the first few readable examples twice, and see that they are functions of their keys alone.

    mimkit's own views of image files are; with these it returns at once.

    Raises:
        ValueError: a view or an example draws from a global generator, or differs when it is made again.
    """
    files = isinstance(samples.examples, ImageList) and not isinstance(samples.examples.store, ImagesInMemory)
    if files and type(samples.view).__module__.startswith("mimkit."):
        return
    keys = sample_keys(0, 0, torch.arange(VIEWS)).numpy()
    who = f"the view {name_of(samples.view)}"
    read = 0
    for index in range(min(MOST_TRIED, len(samples))):
        before = _global_states()
        made = [_views(samples, index, keys) for _ in range(2)]
        drawn = [name for name, state in _global_states().items() if state != before[name]]
        if drawn and _draws_itself(samples, index):
            raise ValueError(
                f"the data set draws from the global generator of {' and '.join(drawn)}, as random transforms do: "
                "batches would differ between workers and after a resume. Give it without random transforms: the view "
                "crops and flips, and another view can do more"
            )
        if drawn:
            raise ValueError(
                f"{who} draws from the global generator of {' and '.join(drawn)}: batches would differ between workers "
                "and after a resume. Draw from the view's `rng` only, or within mimkit.randomness.seeded(rng)"
            )
        if not _alike(*made):
            raise ValueError(
                f"{who}, or the data set, makes something else of {samples.examples.path(index)} when called again "
                "with the same key: it keeps a generator or a count of its own. Draw from the view's `rng` only"
            )
        read += made[0] is not None
        if read == EXAMPLES:
            return


def _draws_itself(samples: Samples, index: int) -> bool:
    """Whether an example draws from a global generator, without a view."""
    before = _global_states()
    with contextlib.suppress(BadImage):
        samples.examples.example(index)
    return _global_states() != before


def _views(samples: Samples, index: int, keys: np.ndarray) -> dict[str, Any] | None:
    """All that a batch of views of one example has; None where it cannot be read."""
    pixels = samples.empty(len(keys))
    viewed = samples.read(index, keys, pixels)
    return None if isinstance(viewed, BadImage) else samples.tensors(pixels, viewed)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return np.array_equal(one.numpy(), other.numpy(), equal_nan=one.is_floating_point())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one is None and other is None


def _global_states() -> dict[str, Any]:
    _, key, *rest = np.random.get_state()
    numpy_state = (np.asarray(key).tobytes(), *rest)
    return {"torch": torch.get_rng_state().numpy().tobytes(), "NumPy": numpy_state, "Python": random.getstate()}

"""Whether views and data are functions of their keys, which exact resume and any number of workers rest on."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.data.samples import Samples, name_of


def require_repeatable(samples: Samples, count: int = 4) -> None:
    """Make views of the first few readable examples twice, and see that they are functions of their keys alone.

    Raises:
        ValueError: a view or an example draws from a global generator, or differs when it is made again.
    """
    keys = np.arange(1)
    for index in range(min(count, len(samples))):
        before, made = _global_states(), []
        for _ in range(2):
            batch = samples.empty(1)
            if samples.put(batch, range(1), index, keys) is not None:
                break
            made.append(samples.tensors(batch, 1))
        drawn = [name for name, state in _global_states().items() if state != before[name]]
        who = f"the view {name_of(samples.view)}, or the data set,"
        if drawn:
            raise ValueError(
                f"{who} draws from the global generator of {' and '.join(drawn)}: batches would differ between workers "
                "and after a resume. Draw from the view's `rng` only, and give data without random transforms"
            )
        if len(made) == 2 and not all(_alike(made[0][name], made[1][name]) for name in made[0]):
            raise ValueError(
                f"{who} makes something else of {samples.examples.path(index)} when called again with the same key: "
                "it keeps a generator or a count of its own. Draw from the view's `rng` only"
            )


def _alike(one: Tensor | list[Tensor], other: Tensor | list[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point()) for a, b in pairs)


def _global_states() -> dict[str, Any]:
    _, key, *rest = np.random.get_state()
    numpy_state = (np.asarray(key).tobytes(), *rest)
    return {"torch": torch.get_rng_state().numpy().tobytes(), "NumPy": numpy_state, "Python": random.getstate()}

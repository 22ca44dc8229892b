"""A backend of torch.compile for the tests, which need no compiler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Graphs:
    """Computes graphs as they stand, and counts them and how often they are run."""

    def __init__(self) -> None:
        self.compiled = self.run = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*inputs: Any) -> Any:
            self.run += 1
            return graph(*inputs)

        return run

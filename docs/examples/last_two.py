"""A readout: the mean of the last two taps."""

from torch import nn

from mimkit.backbones import Encoder, Latent
from mimkit.readouts import Readout


class LastTwo(Readout):
    """The mean of the last two taps through the final norm: one level.

    Args:
        encoder: whose taps they are.

    Raises:
        ValueError: they differ in width or grid.
    """

    taps = (-2, -1)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if encoder.levels[-2:] != encoder.levels[-1:] * 2:
            raise ValueError(f"the last two taps of {encoder.name} differ in width or grid")
        self.levels = encoder.levels[-1:]
        self.cells = (encoder.cell,)

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        before, last = latents
        tokens, prefix = (before.tokens + last.tokens) / 2, (before.prefix + last.prefix) / 2
        return [Latent(tokens=norm(tokens), grid=last.grid, ids=last.ids, prefix=norm(prefix))]

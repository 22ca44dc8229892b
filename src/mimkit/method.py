"""The step: one equation that every method is an instance of.

    loss(x) = Σ_levels  mean over hidden cells of  distance( decode(readout(encode(x, mask))), target(x) )

Shapes: B batch, C image channels, H W pixels, h w cells of a level, V values of a cell.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder
from mimkit.losses import Distance, masked_mean
from mimkit.masks import Mask, MaskSampler
from mimkit.readouts import Readout
from mimkit.targets import Target
from mimkit.views import Normalization


@dataclass(frozen=True, eq=False)
class Output:
    """What one step gives.

    Args:
        loss: scalar, the sum of the levels.
        per_level: a scalar for each level.
        predictions: [B, h, w, V] for each level; zero in cells that a partial decoder was not asked for.
        mask: what was hidden.
    """

    loss: Tensor
    per_level: list[Tensor]
    predictions: list[Tensor]
    mask: Mask


class Method(nn.Module):
    """A masked-image-modelling method, composed of its parts (`mimkit.recipes` composes the published ones)."""

    def __init__(
        self,
        *,
        mask: MaskSampler,
        encoder: Encoder,
        readout: Readout,
        decoders: list[nn.Module],
        target: Target,
        distance: Distance,
        normalization: Normalization,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.encoder = encoder
        self.readout = readout
        self.decoders = nn.ModuleList(decoders)
        self.target = target
        self.distance = distance
        self.normalization = normalization

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        keys: Tensor | None = None,
        batch_key: Tensor | None = None,
    ) -> Output:
        """One step.

        Args:
            images: [B, C, H, W], either uint8 pixels or floats already normalised.
            mask: what to hide; left out, the method draws its own. One with copies has so many rows per image.
            keys: int64 [B], the draws to take: the same keys give the same masks. Left out, they come from torch's
                global generator.
            batch_key: int64 [1], the draw of what a whole batch shares, for images that are a slice of it. Left out, it
                is the first of the keys.

        Raises:
            ValueError: the mask is for another number of images, its grid does not nest with the encoder's, or bytes
                have another number of channels than the normalisation.
        """
        if images.dtype == torch.uint8:
            images = self.normalization.from_bytes(images)
        if mask is None:
            if keys is None:
                keys = torch.randint(2**62, (len(images),), device=images.device)
            grid = self.mask.grid((images.shape[-2], images.shape[-1]), self.encoder.cell)
            mask = self.mask.sample(keys, grid, batch_key)
        if len(mask.hidden) != len(images) * mask.copies:
            raise ValueError(f"a mask for {len(mask.hidden) // mask.copies} images was given with {len(images)} images")
        images = images if mask.copies == 1 else images.repeat_interleave(mask.copies, dim=0)

        seen = images.to(next(self.encoder.parameters()).dtype)  # targets need all digits
        latents = self.encoder(seen, mask, self.readout.taps)
        levels = self.readout(latents, self.encoder.norm)
        predictions = [decode(level, mask) for decode, level in zip(self.decoders, levels, strict=True)]

        grids = [(prediction.shape[1], prediction.shape[2]) for prediction in predictions]
        targets = self.target(images, grids)
        per_level = [
            masked_mean(self.distance(prediction.float(), target), mask.weights(grid))
            for prediction, target, grid in zip(predictions, targets, grids, strict=True)
        ]
        return Output(loss=torch.stack(per_level).sum(), per_level=per_level, predictions=predictions, mask=mask)

    def scalars(self) -> dict[str, float]:
        """What the log should follow beside the loss."""
        return self.readout.scalars()

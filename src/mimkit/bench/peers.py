"""Other libraries' masked autoencoders, built as in their documentation, for `mimkit bench step --peers`.

All compute the same as recipe mae: ViT-B/16 at 224, 75 % hidden, a decoder of 8 blocks, 512 wide with 16 heads, and the
mean squared error of patch-normalised pixels over hidden patches.

Shapes: B batch, N patches and class token, E decoder width.
"""

from collections.abc import Callable
from types import SimpleNamespace

import timm
from torch import Tensor, nn

from mimkit.recipes import Recipe

PATCH, SIDE, RATIO = 16, 224, 0.75
WIDTH, DEPTH, HEADS = 512, 8, 16


def huggingface() -> nn.Module:
    """transformers' ViTMAE."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True))


class Lightly(nn.Module):
    """lightly's masked ViT and decoder over timm's blocks: embedding, head and loss are left to its users."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.length = self.backbone.sequence_length
        self.embed = nn.Linear(vit.embed_dim, WIDTH)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS
        )
        self.head = nn.Linear(WIDTH, PATCH**2 * 3)

    def forward(self, images: Tensor) -> SimpleNamespace:
        """Images [B, 3, 224, 224] to an object with a `loss`."""
        from lightly.models import utils

        kept, hidden = utils.random_token_mask((len(images), self.length), mask_ratio=RATIO, device=images.device)
        visible = self.embed(self.backbone.encode(images=images, idx_keep=kept))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.length))
        decoded = self.decoder(utils.set_at_index(tokens, kept, visible.type_as(tokens)))
        predicted = self.head(utils.get_at_index(decoded, hidden))
        target = utils.get_at_index(utils.patchify(images, PATCH), hidden - 1)  # patches have no class token
        return SimpleNamespace(loss=nn.functional.mse_loss(predicted, utils.normalize_mean_var(target)))


PEERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {  # the module that each needs, and its constructor
    "huggingface": ("transformers.models.vit_mae.modeling_vit_mae", huggingface),
    "lightly": ("lightly.models.modules", Lightly),
}


def peer(name: str) -> nn.Module:
    """A peer with fresh weights.

    Raises:
        ValueError: its package is missing, or too old.
    """
    module, make = PEERS[name]
    try:
        return make()
    except ImportError as error:
        raise ValueError(f"--peers needs {module.partition('.')[0]}: pip install 'mimkit[bench]' ({error})") from error


def refuse_unequal(recipe: str, composed: Recipe, backbone: str) -> None:
    """Raise ValueError where the peers would not do the same work as the recipe."""
    requested = (recipe, backbone, composed.image_size, composed.channels)
    same = ("mae", "vit_base_patch16_224", (SIDE, SIDE), 3)
    if requested != same:
        what = ("--recipe", "--backbone", "--image-size", "channels")
        flag, value, wanted = next(z for z in zip(what, requested, same, strict=True) if z[1] != z[2])
        raise ValueError(f"--peers are made for {flag} {wanted}, not {value}")

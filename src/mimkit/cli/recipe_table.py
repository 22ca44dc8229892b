"""The recipes as a table."""

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimkit.recipes import Recipe

ENCODERS = """\
encoders (--backbone, --encoder): any recipe takes any backbone that its parts fit, and refuses others with the reason
  visible   plain ViTs and Swin of timm, convmae_base   computes on visible tokens only
  dense     whatever of timm hands out intermediate features (ViT, BEiT, Swin, SwinV2, ConvNeXt, Hiera, ResNet, ...)
            mask tokens in place of hidden cells; features equal timm's own bit for bit"""


def as_rows() -> list[dict[str, Any]]:
    """One mapping for each recipe: name, paper, parts, training values, published numbers, what verifies it."""
    from mimkit.compose import RECIPES
    from mimkit.recipes import parts_in_words

    rows = []
    for name, make in RECIPES.items():
        recipe = make()
        values = recipe.train
        training = (
            f"{values.epochs} epochs, batch {values.batch_size}, base lr {values.base_lr:g} per {values.lr_batch}, "
            f"warm-up {values.warmup_epochs:g}, AdamW {values.betas}, weight decay {values.weight_decay:g}"
        )
        parts = parts_in_words(recipe) | {"training": training}
        row = {"recipe": name, "paper": recipe.paper, "backbone": backbone(recipe), "parts": parts}
        rows.append(row | {"published": recipe.published, "verified": recipe.verified})
    return rows


def backbone(recipe: "Recipe") -> str:
    """A recipe's default backbone, and the kind of its encoder."""
    assert isinstance(recipe.encoder, partial)
    name = str(recipe.encoder.keywords["name"]).partition("(")[0]
    return f"{name}, {recipe.encoder.keywords.get('kind') or 'visible'}"


def as_table() -> str:
    """The same as text: method x backbone x what verifies it, then a block of lines for each recipe."""
    rows = as_rows()
    summary = [f"{'recipe':21}{'backbone':40}verified against"]
    summary += [f"{row['recipe']:21}{row['backbone']:40}{row['verified']}" for row in rows]
    blocks = ["\n".join(summary), ENCODERS]
    for row in rows:
        lines = [f"{row['recipe']:21}{row['paper']}"]
        lines += [f"  {part:10}{words}" for part, words in row["parts"].items()]
        lines += [f"  published {row['published']}"] if row["published"] else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

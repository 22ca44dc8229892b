"""The recipes as a table."""

from typing import Any

from mimkit.compose import recipes
from mimkit.recipes import parts_in_words


def as_rows() -> list[dict[str, Any]]:
    """One mapping for each recipe: name, paper, parts, training values, published numbers."""
    rows = []
    for name, make in recipes().items():
        recipe = make()
        values = recipe.train
        training = (
            f"{values.epochs} epochs, batch {values.batch_size}, base lr {values.base_lr:g} per {values.lr_batch}, "
            f"warm-up {values.warmup_epochs:g}, AdamW {values.betas}, weight decay {values.weight_decay:g}"
        )
        parts = parts_in_words(recipe) | {"training": training}
        rows.append({"recipe": name, "paper": recipe.paper, "parts": parts, "published": recipe.published})
    return rows


def as_table() -> str:
    """The same for reading: a block of lines for each recipe."""
    blocks = []
    for row in as_rows():
        lines = [f"{row['recipe']:12}{row['paper']}"]
        lines += [f"  {part:10}{words}" for part, words in row["parts"].items()]
        lines += [f"  published {row['published']}"] if row["published"] else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

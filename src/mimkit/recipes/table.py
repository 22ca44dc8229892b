"""The recipes as a table."""

from typing import Any

from mimkit.pretrain import in_words
from mimkit.settings import recipes

PARTS = ("view", "mask", "encoder", "readout", "decoder", "target", "distance")


def as_rows() -> list[dict[str, Any]]:
    """One mapping for each recipe: name, paper, parts, training values, published numbers."""
    rows = []
    for name, make in recipes().items():
        recipe = make()
        parts = {part: getattr(recipe, part) for part in PARTS}
        words = {
            part: in_words(value) if callable(value) and not hasattr(value, "__dataclass_fields__") else str(value)
            for part, value in parts.items()
        }
        rows.append({"recipe": name, "paper": recipe.paper, "parts": words, "published": recipe.published})
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

"""Import of published checkpoints: recognised by their keys, translated to the names of this package."""

"""Published checkpoints in: recognised by their keys, translated to the names of this package."""

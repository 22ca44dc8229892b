"""How anything is trained: the loop, its state on disk, several processes, precision. It knows `.loss`, no method."""

"""What an encoder is worth: frozen features, probes, pictures of reconstructions."""

"""Evaluation of encoders and methods: frozen features, probes, reconstructions."""

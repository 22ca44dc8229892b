"""Evaluation of encoders and methods: frozen features, probes, reconstructions."""

from mimkit.evaluation.frozen import Embedding, embed, probe
from mimkit.evaluation.online import OnlineProbe, OnlineReconstructions
from mimkit.evaluation.reconstruction import reconstruct

__all__ = ["Embedding", "OnlineProbe", "OnlineReconstructions", "embed", "probe", "reconstruct"]

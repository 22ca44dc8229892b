from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mimkit.bench.peers import PEERS, peer, refuse_unequal
from mimkit.compose import compose
from mimkit.recipes import build
from mimkit.settings import Settings


@pytest.mark.parametrize(
    ("name", "head"), [("huggingface", lambda model: model.decoder.decoder_pred), ("lightly", lambda model: model.head)]
)
def test_peers_do_the_same_work(name, head):
    pytest.importorskip(PEERS[name][0])
    ours, theirs = build(compose("mae", Settings(data=Path()))).train(), peer(name).train()
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)  # lightly's encoder has a mask token it does not use
    images = torch.randn(1, 3, 224, 224)
    operations = []
    for model, part in ((ours, ours.decoders[0].head), (theirs, head(theirs))):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
        with FlopCounterMode(display=False) as counter:
            loss = model(images).loss.detach()
        assert float(loss) == pytest.approx(767 / 768, abs=1e-4)  # mean square of patches normalised with n - 1
        operations.append(counter.get_total_flops())
    assert operations[0] == pytest.approx(operations[1], rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("pixmim", {}, "--recipe mae, not pixmim"),
        ("mae", {"backbone": "vit_small_patch16_224"}, "--backbone vit_base_patch16_224, not vit_small"),
        ("mae", {"image_size": (32, 32)}, r"--image-size \(224, 224\), not \(32, 32\)"),
    ],
)
def test_peers_of_other_work_are_refused(recipe, options, message):
    settings = Settings(data=Path(), **options)
    with pytest.raises(ValueError, match=message):
        refuse_unequal(recipe, compose(recipe, settings), options.get("backbone", "vit_base_patch16_224"))


def test_a_missing_peer_says_what_to_install(monkeypatch):
    def missing():
        raise ImportError("No module named 'lightly'")

    monkeypatch.setitem(PEERS, "lightly", ("lightly.models.modules", missing))
    with pytest.raises(ValueError, match=r"--peers needs lightly: pip install 'mimkit\[bench\]'"):
        peer("lightly")

"""LocalMIM's readout on backbones with stages."""

import torch

from mimkit.backbones import create_encoder
from mimkit.readouts import Levels

CONVNEXT = "convnext_tiny(depths=(1,1,2,1),dims=(8,16,24,32))"
SWIN = "swin_tiny_patch4_window7_224(embed_dim=16,depths=(2,2,2,2),num_heads=(1,2,2,4),window_size=2)"


def test_fine_stages_of_a_dense_encoder_are_averaged_to_8_pixels():
    encoder = create_encoder(CONVNEXT, image_size=(64, 96)).eval()
    readout = Levels(encoder).eval()
    assert readout.taps == (0, 1, 2, 3)
    assert [(level.dim, level.cell) for level in readout.levels] == [(8, 8), (16, 8), (24, 16), (32, 32)]
    assert readout.cells == (8, 8, 16, 32)
    latents = encoder(torch.randn(2, 3, 64, 96), None, readout.taps)
    first, second, *_ = readout(latents, encoder.norm)
    assert (first.grid, latents[0].grid, second.grid) == ((8, 12), (16, 24), (8, 12))
    four = latents[0].tokens.unflatten(1, (16, 24))[1, 4:6, 10:12].flatten(0, 1)  # the tokens of cell (2, 5)
    torch.testing.assert_close(first.tokens[1, 2 * 12 + 5], readout.norms[0](four.mean(0)))
    assert torch.equal(second.tokens, readout.norms[1](latents[1].tokens))


def test_stages_of_visible_tokens_stay_as_they_are():
    encoder = create_encoder(SWIN, image_size=(64, 64))
    assert [level.cell for level in Levels(encoder).levels] == [8, 16, 32, 32]

"""`VisibleSwin`: with nothing hidden timm's dense Swin; with a mask, a slow Swin written out over whole images in which
hidden tokens take no part in any window.
"""

from dataclasses import dataclass, replace

import pytest
import timm
import torch
from torch import Tensor

from helpers import parts
from mimkit.backbones.latent import Latent
from mimkit.backbones.visible_swin import VisibleSwin
from mimkit.masks import Mask

BATCH = 2


@dataclass(frozen=True)
class Case:
    """A small Swin, and a mask for it. The first stage has patches of `patch` pixels."""

    size: tuple[int, int]
    window: int | tuple[int, int]
    mask_grid: tuple[int, int]
    hidden: int
    patch: int = 4
    stages: int = 4
    channels: int = 3

    def encoder(self, **options) -> VisibleSwin:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            swin = timm.create_model(
                "swin_tiny_patch4_window7_224",
                num_classes=0,
                img_size=self.size,
                in_chans=self.channels,
                patch_size=self.patch,
                window_size=self.window,
                embed_dim=16,
                depths=(2,) * self.stages,
                num_heads=(1, 2, 2, 4)[: self.stages],
                drop_path_rate=0.0,
            )
        return VisibleSwin(parts.perturb(swin).eval(), name="swin", image_size=self.size, **options)

    def images(self) -> Tensor:
        return parts.images(BATCH, self.size, self.channels)

    def mask(self, shared: bool = False) -> Mask:
        mask = parts.hide(BATCH, self.mask_grid, self.hidden)
        return Mask(mask.hidden[:1].expand(BATCH, -1, -1), shared=True) if shared else mask


CASES = {
    "shifted in three stages": Case((96, 96), 3, (3, 3), 5),
    "even windows, shifted along one axis": Case((64, 128), 4, (2, 4), 3),
    "oblong windows": Case((96, 192), (3, 6), (3, 6), 12),
    "coarse mask": Case((128, 128), 4, (2, 2), 2),
    "windows as published": Case((224, 224), 7, (7, 7), 37),
    "three stages, patches of 8": Case((192, 96), (6, 3), (6, 3), 10, patch=8, stages=3, channels=1),
    "one cell visible": Case((96, 96), 3, (3, 3), 8),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


# --- the slow Swin -----------------------------------------------------------------------------------------------


def slow_taps(encoder: VisibleSwin, images: Tensor, hidden: Tensor) -> list[Tensor]:
    """Raster images of tokens [B, h, w, D] behind every stage; those at hidden pixels [B, 1, H, W] mean nothing."""
    swin = encoder.swin
    patch = swin.patch_embed
    x = patch.norm(patch.proj(images.masked_fill(hidden, 0.0)).permute(0, 2, 3, 1))
    taps = []
    for i, stage in enumerate(swin.layers):
        step = images.shape[2] // x.shape[1]
        visible = ~hidden[:, 0, ::step, ::step]
        for block in stage.blocks:
            x = x + slow_attention(block, block.norm1(x), visible)
            x = x + block.mlp(block.norm2(x))
        if i + 1 < len(swin.layers):
            merging = swin.layers[i + 1].downsample
            corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = merging.reduction(merging.norm(torch.cat(corners, dim=3)))
        taps.append(x)
    return taps


def slow_attention(block, x: Tensor, visible: Tensor) -> Tensor:
    """One window after another, cut off at the image's edge, keys of hidden tokens [B, h, w] left out."""
    batch, h, w, dim = x.shape
    (height, width), shift, heads = block.window_size, block.shift_size, block.attn.num_heads
    q, k, v = block.attn.qkv(x).reshape(batch, h, w, 3, heads, dim // heads).unbind(3)
    table = block.attn.relative_position_bias_table.reshape(2 * height - 1, 2 * width - 1, heads)
    out = torch.zeros_like(x)
    for top in range(shift[0] - height, h, height):
        for left in range(shift[1] - width, w, width):
            window = (slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0)))
            rows, columns = (part.flatten() for part in torch.meshgrid(
                torch.arange(h)[window[0]], torch.arange(w)[window[1]], indexing="ij"
            ))  # fmt: skip
            if not len(rows):
                continue
            queries, keys, values = (part[:, rows, columns] for part in (q, k, v))
            logits = torch.einsum("bind,bjnd->bijn", queries, keys) * (dim // heads) ** -0.5
            between = rows[:, None] - rows + height - 1, columns[:, None] - columns + width - 1
            logits = logits + table[between]
            logits = logits.masked_fill(~visible[:, rows, columns][:, None, :, None], -1e9)
            values = torch.einsum("bijn,bjnd->bind", logits.softmax(dim=2), values)
            # Windows are disjoint, so this places each token once.
            out = out.index_put((torch.arange(batch)[:, None], rows, columns), values.flatten(2))
    return block.attn.proj(out)


def at(latent: Latent, raster: Tensor) -> Tensor:
    """Of raster tokens [B, h, w, D] those that the latent has, in its order."""
    assert raster.shape[1:3] == latent.grid
    return raster.flatten(1, 2).gather(1, latent.ids[:, :, None].expand(-1, -1, raster.shape[3]))


# --- tokens ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_slow_swin_is_timms(case):
    encoder = case.encoder().double()
    images = case.images().double()
    last = slow_taps(encoder, images, torch.zeros_like(images[:, :1], dtype=torch.bool))[-1]
    torch.testing.assert_close(encoder.norm(last), encoder.swin.forward_features(images), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_unmasked_latents_are_timms(case):
    encoder = case.encoder()
    images = case.images()
    latents = encoder(images, None, range(case.stages))
    x = encoder.swin.patch_embed(images)
    for i, stage in enumerate(encoder.swin.layers):
        x = stage(x)
        behind = encoder.swin.layers[i + 1].downsample(x) if i + 1 < case.stages else x
        assert latents[i].ids is None
        assert latents[i].grid == behind.shape[1:3]
        assert latents[i].prefix.shape == (BATCH, 0, behind.shape[3])
        assert torch.equal(latents[i].tokens, behind.flatten(1, 2))
    features = encoder.swin.forward_features(images)
    assert torch.equal(encoder.norm(latents[-1].tokens), features.flatten(1, 2))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@torch.no_grad()
def test_with_nothing_hidden_it_is_the_dense_model(case, dtype, tolerance, shared):
    encoder = case.encoder().to(dtype)
    images = case.images().to(dtype)
    mask = Mask(torch.zeros(BATCH, *case.mask_grid, dtype=torch.bool), shared=shared)
    for sparse, dense in zip(*(encoder(images, m, range(case.stages)) for m in (mask, None)), strict=True):
        raster = dense.tokens.unflatten(1, dense.grid)
        torch.testing.assert_close(sparse.tokens, at(sparse, raster), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [False, True])
def test_visible_tokens_and_gradients_are_the_slow_ones(case, shared):
    """At every tap; gradients of a sum over all taps, so that each stage and each merging is reached several ways."""
    encoder = case.encoder().double()
    images = case.images().double()
    mask = case.mask(shared)
    latents = encoder(images, mask, range(case.stages))
    slow = [at(latent, raster) for latent, raster in zip(
        latents, slow_taps(encoder, images, parts.hidden_pixels(mask, case.size)), strict=True
    )]  # fmt: skip
    for latent, expected in zip(latents, slow, strict=True):
        torch.testing.assert_close(latent.tokens, expected, rtol=1e-9, atol=1e-9)

    parameters = {name: p for name, p in encoder.swin.named_parameters() if not name.startswith("norm.")}
    weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(1)).double() for part in slow]
    gradients = []
    for tokens in ([latent.tokens for latent in latents], slow):
        loss = sum((part * weight).mean() for part, weight in zip(tokens, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, [*parameters.values()]))
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
        # Of a single visible cell, late tokens are alone in their windows, where positions weigh nothing.
        assert theirs.norm() > 1e-6 or (latents[-1].tokens.shape[1] == 1 and name.endswith("bias_table")), name


@torch.no_grad()
def test_ids_are_the_visible_cells_and_the_last_ascend(case):
    encoder = case.encoder()
    mask = case.mask()
    latents = encoder(case.images(), mask, range(case.stages))
    for latent, level in zip(latents, encoder.levels, strict=True):
        assert latent.grid == (case.size[0] // level.cell, case.size[1] // level.cell)
        assert latent.tokens.shape == (*latent.ids.shape, level.dim)
        assert torch.equal(latent.ids.sort(dim=1).values, mask.visible_ids(latent.grid))
    assert torch.equal(latents[-1].ids, mask.visible_ids(latents[-1].grid))


@torch.no_grad()
def test_a_shared_mask_is_the_same_mask_for_each(case):
    encoder = case.encoder()
    images = case.images()
    shared = case.mask(shared=True)
    for one, own in zip(
        encoder(images, shared, range(case.stages)),
        encoder(images, replace(shared, shared=False), range(case.stages)),
        strict=True,
    ):
        assert torch.equal(one.ids, own.ids)
        torch.testing.assert_close(one.tokens, own.tokens, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hidden_pixels_change_nothing_and_visible_ones_do(case):
    encoder = case.encoder()
    images = case.images()
    mask = case.mask()
    hidden = parts.hidden_pixels(mask, case.size)
    before = encoder(images, mask, range(case.stages))
    for replacement in (-7 * images, torch.full_like(images, torch.nan)):
        after = encoder(torch.where(hidden, replacement, images), mask, range(case.stages))
        assert all(torch.equal(old.tokens, new.tokens) for old, new in zip(before, after, strict=True))
    after = encoder(torch.where(hidden, images, -7 * images), mask, range(case.stages))
    assert all((old.tokens != new.tokens).any(dim=2).all() for old, new in zip(before, after, strict=True))


def test_gradients_at_hidden_pixels_are_zero(case):
    encoder = case.encoder()
    images = case.images().requires_grad_()
    mask = case.mask()
    tokens = encoder(images, mask)[0].tokens
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    hidden = parts.hidden_pixels(mask, case.size).expand_as(images)
    assert not images.grad[hidden].any()
    assert (images.grad[~hidden] != 0).float().mean() > 0.99


@torch.no_grad()
def test_samples_do_not_mix(case):
    encoder = case.encoder()
    images = case.images()
    mask = case.mask()
    together = encoder(images, mask)[0].tokens
    for i in range(BATCH):
        alone = encoder(images[i : i + 1], Mask(mask.hidden[i : i + 1]))[0].tokens
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


# --- the encoder -------------------------------------------------------------------------------------------------


def test_levels_are_those_of_swin():
    """LocalMIM's taps of a Swin-B: 2C, 4C, 8C, 8C wide, on cells of 8, 16, 32, 32 pixels."""
    encoder = CASES["windows as published"].encoder()
    assert [(level.dim, level.cell) for level in encoder.levels] == [(32, 8), (64, 16), (128, 32), (128, 32)]
    assert (encoder.depth, encoder.dim, encoder.cell, encoder.smallest_cell) == (4, 128, 32, 32)
    assert encoder.channels == 3
    assert not encoder.complete
    assert encoder.norm is encoder.swin.norm
    timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4)
    ).load_state_dict(encoder.timm_weights())


@torch.no_grad()
def test_taps_come_in_the_order_asked_and_no_deeper_stage_runs():
    case = CASES["shifted in three stages"]
    encoder = case.encoder()
    every = encoder(case.images(), case.mask(), range(4))
    ran = []
    for i, stage in enumerate(encoder.swin.layers):
        stage.blocks[0].attn.register_forward_hook(lambda *_, i=i: ran.append(i))
        stage.blocks[0].attn.qkv.register_forward_hook(lambda *_, i=i: ran.append(i))
    asked = encoder(case.images(), case.mask(), (1, -4, 1))
    assert ran == [0, 1]
    for latent, index in zip(asked, (1, 0, 1), strict=True):
        assert torch.equal(latent.tokens, every[index].tokens)
        assert torch.equal(latent.ids, every[index].ids)


@pytest.mark.parametrize("masked", [True, False])
def test_isolated_stages_learn_from_their_own_tap_only(masked):
    case = CASES["shifted in three stages"]
    encoder, whole = case.encoder(isolated=True), case.encoder()
    mask = case.mask() if masked else None
    own = [
        ("patch_embed.", "layers.0.blocks.", "layers.1.downsample."),
        ("layers.1.blocks.", "layers.2.downsample."),
        ("layers.2.blocks.", "layers.3.downsample."),
        ("layers.3.blocks.",),
    ]
    for tap, prefixes in enumerate(own):
        latents, connected = (e(case.images(), mask, range(4)) for e in (encoder, whole))
        for e, latent in ((encoder, latents[tap]), (whole, connected[tap])):
            e.zero_grad()
            latent.tokens.square().mean().backward()
        assert torch.equal(latents[tap].tokens, connected[tap].tokens)
        for (name, mine), theirs in zip(encoder.swin.named_parameters(), whole.swin.parameters(), strict=True):
            assert (mine.grad is not None) == name.startswith(prefixes), name
            if mine.grad is not None:
                assert torch.equal(mine.grad, theirs.grad), name


@torch.no_grad()
def test_the_plan_waits_for_no_device():
    """On the meta device, where no value can be read: shapes depend on the number of visible cells only."""
    case = CASES["oblong windows"]
    encoder = case.encoder().to("meta")
    for shared in (False, True):
        mask = replace(case.mask(shared), hidden=case.mask(shared).hidden.to("meta"))
        latents = encoder(case.images().to("meta"), mask, range(4))
        assert [latent.tokens.shape for latent in latents] == [
            (BATCH, 96, 32),
            (BATCH, 24, 64),
            (BATCH, 6, 128),
            (BATCH, 6, 128),
        ]


@torch.no_grad()
def test_autocast_stays_close():
    case = CASES["oblong windows"]
    encoder = case.encoder()
    exact = encoder(case.images(), case.mask())[0].tokens
    with torch.autocast("cpu", torch.bfloat16):
        close = encoder(case.images(), case.mask())[0].tokens
    assert (close - exact).square().mean() < 1e-3 * exact.square().mean()


def test_dropped_paths_leave_the_tokens_as_they_are():
    case = CASES["shifted in three stages"]
    encoder = case.encoder()
    for stage in encoder.swin.layers:
        for block in stage.blocks:
            block.drop_path1, block.drop_path2 = torch.nn.Threshold(1e9, 0.0), torch.nn.Threshold(1e9, 0.0)
    swin = encoder.swin
    x = swin.patch_embed(case.images())
    for stage in swin.layers[1:]:
        x = stage.downsample(x)
    (latent,) = encoder(case.images(), case.mask())
    torch.testing.assert_close(latent.tokens, at(latent, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case((100, 96), 3, (1, 1), 0), r"a cell of 32 pixels does not divide an image of 100 x 96"),
        (Case((96, 96), 4, (1, 1), 0), r"windows of 4 x 4 tokens do not divide a stage of 6 x 6"),
        (Case((96, 128), (3, 3), (1, 1), 0), r"windows of 3 x 3 tokens do not divide a stage of 24 x 32"),
        (Case((96, 96), 3, (1, 1), 0, patch=(4, 2)), r"patches have 4 x 2 pixels, and cells must be square"),
    ],
)
def test_images_that_timm_would_pad_are_refused(case, message):
    with pytest.raises(ValueError, match=message):
        case.encoder()


def test_other_sizes_are_refused():
    case = CASES["shifted in three stages"]
    encoder = case.encoder()
    for mask in (None, parts.hide(1, (6, 6), 9)):
        with pytest.raises(ValueError, match=r"built for images of 96 x 96 pixels, got 192 x 192"):
            encoder(parts.images(1, (192, 192)), mask)
    with pytest.raises(ValueError, match=r"built for images of 96 x 96 pixels, not 96 x 64"):
        VisibleSwin(encoder.swin, name="swin", image_size=(96, 64))


@pytest.mark.parametrize("grid", [(6, 6), (6, 3), (2, 2), (5, 3), (24, 24)])
def test_masks_of_other_cells_are_refused(grid):
    case = CASES["shifted in three stages"]
    with pytest.raises(ValueError, match=rf"{grid[0]} x {grid[1]} cells over 96 x 96 pixels .* cells of 32 pixels"):
        case.encoder()(case.images(), parts.hide(BATCH, grid, 3))


def test_masks_that_replace_tokens_are_refused():
    case = CASES["shifted in three stages"]
    hidden = case.mask().hidden
    with pytest.raises(ValueError, match=r"this mask replaces 5 cells, and swin has 0 mask tokens"):
        case.encoder()(case.images(), Mask(hidden, replaced=hidden))


def test_taps_beyond_the_last_stage_are_refused():
    case = CASES["shifted in three stages"]
    with pytest.raises(ValueError, match=r"tap 4 lies outside the 4 of swin"):
        case.encoder()(case.images(), None, (4,))

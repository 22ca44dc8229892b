"""Checkpoints of MAE, LocalMIM and SimMIM, all of whose numbers are random: what is imported gives the original's loss.

The originals are written out here under their published names, after the papers, with none of mimkit's code. Fixed
tables of positions are random too, the class token's row among them. Files go through the command line.
"""

import argparse
import re
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import parts
from mimkit.cli.main import main
from mimkit.sources import load_method

LOSS, GRADIENT = 1e-5, 1e-4
SIDE, PATCH, DIM, WIDTH = 64, 16, 128, 64
CELLS = (SIDE // PATCH) ** 2


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).chunk(3, dim=2)
        size = x.shape[2] // self.heads
        found = []
        for head in range(self.heads):
            q, k, v = (part[:, :, head * size : (head + 1) * size] for part in (queries, keys, values))
            found.append((q @ k.mT / size**0.5).softmax(dim=2) @ v)
        return self.proj(torch.cat(found, dim=2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class VisibleTokens(nn.Module):
    """What MAE and LocalMIM begin with: patches and positions, of which only visible ones are kept, a class token."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + CELLS, DIM), requires_grad=False)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, DIM, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(DIM, 2) for _ in range(depth))

    def embed(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Images and bool [B, N] to [B, 1 + K, D]."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        visible = torch.stack([patches[i, ~hidden[i]] for i in range(len(images))])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat([first, visible], dim=1)


def filled(x: Tensor, mask_token: Tensor, hidden: Tensor) -> Tensor:
    """Visible tokens in their places behind the class token, the mask token in all others."""
    rows = []
    for tokens, gaps in zip(x, hidden, strict=True):
        row = mask_token[0, 0].repeat(len(gaps), 1)
        row[~gaps] = tokens[1:]
        rows.append(torch.cat([tokens[:1], row]))
    return torch.stack(rows)


class Mae(VisibleTokens):
    def __init__(self, normalized: bool) -> None:
        super().__init__(depth=3)
        self.normalized = normalized
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        self.decoder_embed = nn.Linear(DIM, WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + CELLS, WIDTH), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(2))
        self.decoder_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.decoder_pred = nn.Linear(WIDTH, PATCH * PATCH * 3)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        x = self.embed(images, hidden)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        x = filled(x, self.mask_token, hidden) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        pixels = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [B, C, h, w, p, p]
        target = pixels.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        if self.normalized:
            mean, variance = target.mean(dim=2, keepdim=True), target.var(dim=2, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return (predicted - target).square().mean(dim=2)[hidden].mean()


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LocalDecoder(nn.Module):
    def __init__(self, scale: float, bins: int) -> None:
        super().__init__()
        self.embed = nn.Linear(DIM, WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + CELLS, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList([Block(WIDTH, 2)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        half, quarter = WIDTH // 2, WIDTH // 4
        rescale: dict[float, tuple[list[nn.Module], int]] = {
            4: (
                [
                    nn.ConvTranspose2d(WIDTH, half, 2, 2),
                    ChannelNorm(half, eps=1e-6),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, 2),
                ],
                quarter,
            ),
            2: ([nn.ConvTranspose2d(WIDTH, half, 2, 2)], half),
            1: ([], WIDTH),
            0.5: ([nn.AvgPool2d(2)], WIDTH),
        }
        layers, width = rescale[scale]
        self.pred = nn.Sequential(*layers, nn.Conv2d(width, 3 * bins, 1))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = filled(self.embed(x), self.mask_token, hidden) + self.pos_embed
        x = self.norm(self.blocks[0](x))[:, 1:]
        return self.pred(x.transpose(1, 2).unflatten(2, (SIDE // PATCH, -1)))


class HogLayer(nn.Module):
    """Histograms [B, 3·n, h, w]; the filters' bias is random, and stays so, in the models that have one."""

    def __init__(self, bins: int, cell: int, bias: bool) -> None:
        super().__init__()
        self.bins, self.cell = bins, cell
        self.conv = nn.Conv2d(1, 2, 3, bias=bias).requires_grad_(False)
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.conv.weight.copy_(torch.stack([sobel, sobel.T])[:, None])

    def forward(self, images: Tensor) -> Tensor:
        planes = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
        gradients = self.conv(planes)
        direction = torch.atan2(gradients[:, 0], gradients[:, 1]) / torch.pi * self.bins
        votes = F.one_hot(direction.floor().long() % self.bins, self.bins) * gradients.norm(dim=1)[..., None]
        histograms = F.avg_pool2d(votes.permute(0, 3, 1, 2), self.cell)
        return F.normalize(histograms, dim=1).unflatten(0, (len(images), 3)).flatten(1, 2)


class LocalMim(VisibleTokens):
    def __init__(self, bins: int, hog_bias: bool) -> None:
        super().__init__(depth=8)
        self.norm = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-6) for _ in range(4))
        self.decoder = nn.ModuleList(LocalDecoder(scale, bins) for scale in (4, 2, 1, 0.5))
        self.hog_enc = nn.ModuleList(HogLayer(bins, cell, hog_bias) for cell in (4, 8, 16, 32))

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        x, taps = self.embed(images, hidden), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            taps += [x] if i in (1, 3, 5, 7) else []
        loss = torch.zeros(())
        for tap, norm, decoder, hog in zip(taps, self.norm, self.decoder, self.hog_enc, strict=True):
            difference = (decoder(norm(tap), hidden) - hog(images)).square().mean(dim=1)
            share = hidden.float().unflatten(1, (1, SIDE // PATCH, -1))
            ratio = difference.shape[1] * PATCH / SIDE
            share = F.avg_pool2d(share, 2) if ratio < 1 else F.interpolate(share, scale_factor=ratio)
            loss = loss + (difference * share[:, 0]).sum() / share.sum()
        return loss


class SimMim(nn.Module):
    """SimMIM on Swin, with timm's stages: mask tokens behind the patch embedding, one convolution, a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        tiny = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 2}
        self.encoder = timm.create_model(
            "swin_base_patch4_window7_224", img_size=SIDE, num_classes=0, global_pool="", drop_path_rate=0, **tiny
        )
        self.encoder.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.decoder = nn.Sequential(nn.Conv2d(128, 32 * 32 * 3, 1), nn.PixelShuffle(32))

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Hidden: bool [B, 2, 2], cells of 32 pixels."""
        tokens = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., None].float()
        x = self.encoder.patch_embed(images)
        x = x * (1 - tokens) + self.encoder.mask_token[:, None] * tokens
        x = self.encoder.norm(self.encoder.layers(x)).permute(0, 3, 1, 2)
        pixels = tokens.permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return ((self.decoder(x) - images).abs() * pixels).sum() / (pixels.sum() + 1e-5) / 3

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """With merging at the end of a stage, where Microsoft's code has it."""
        state = super().state_dict(*args, **kwargs)
        return {
            re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name): value
            for name, value in state.items()
        }


# What names of parameters begin with, theirs and ours.
OF_VIT = {
    "cls_token": "encoder.vit.cls_token",
    "pos_embed": "encoder.vit.pos_embed",
    "patch_embed.": "encoder.vit.patch_embed.",
    "blocks.": "encoder.vit.blocks.",
}
OF_MAE = OF_VIT | {
    "norm.": "encoder.vit.norm.",
    "mask_token": "decoders.0.mask_token",
    "decoder_embed.weight": "decoders.0.embed.weight",
    "decoder_embed.bias": "decoders.0.embed.bias",
    "decoder_blocks.": "decoders.0.blocks.",
    "decoder_norm.": "decoders.0.norm.",
    "decoder_pred.": "decoders.0.head.",
}
OF_LOCALMIM = (
    OF_VIT
    | {f"norm.{i}.": f"readout.norms.{i}." for i in range(3)}
    | {"norm.3.": "encoder.vit.norm."}
    | {
        f"decoder.{i}.{part}": f"decoders.{i}.{part}"
        for i in range(4)
        for part in ("embed.", "mask", "blocks.", "norm.")
    }
    | {"decoder.0.pred.4": "decoders.0.head", "decoder.1.pred.1": "decoders.1.head"}
    | {"decoder.2.pred.0": "decoders.2.head", "decoder.3.pred.1": "decoders.3.head"}
    | {f"decoder.0.pred.{i}": f"decoders.0.rescale.{i}" for i in (0, 1, 3)}
    | {"decoder.1.pred.0": "decoders.1.rescale"}
)
OF_SIMMIM = {
    "encoder.mask_token": "encoder.model.patch_embed.mask_token",
    "encoder.patch_embed.": "encoder.model.patch_embed.stem.",
    "encoder.norm.": "encoder.model.norm.",
    "decoder.0.": "decoders.0.head.",
} | {f"encoder.layers.{i}.": f"encoder.model.layers.{i}." for i in range(4)}


@pytest.mark.parametrize("normalized", [True, False])
def test_mae(tmp_path, normalized):
    theirs = scrambled(lambda: Mae(normalized))
    args = argparse.Namespace(model="mae_vit", norm_pix_loss=normalized, mask_ratio=0.6, input_size=SIDE)
    imported = through_the_command_line(theirs, args, tmp_path)
    assert imported.mask.ratio == 0.6
    same(theirs, imported, (4, 4), OF_MAE)


@pytest.mark.parametrize("bins", [9, 18])
@pytest.mark.parametrize("hog_bias", [False, True], ids=["plain", "bias"])
def test_localmim(tmp_path, bins, hog_bias):
    theirs = scrambled(lambda: LocalMim(bins, hog_bias))
    args = argparse.Namespace(model="MIM_vit", mask_ratio=0.75, input_size=SIDE, norm_pix_loss=False)
    same(theirs, through_the_command_line(theirs, args, tmp_path), (4, 4), OF_LOCALMIM)


def test_simmim(tmp_path):
    theirs = scrambled(SimMim)
    same(theirs, through_the_command_line(theirs, argparse.Namespace(), tmp_path), (2, 2), OF_SIMMIM)


def test_other_image_sizes(tmp_path):
    """Random tables are no sine-cosine ones to be made afresh: they are resized. The encoder's does not learn."""
    theirs = scrambled(lambda: Mae(normalized=True))
    imported = through_the_command_line(theirs, argparse.Namespace(), tmp_path)
    square = theirs.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    wide = F.interpolate(square, size=(4, 8), mode="bicubic", align_corners=False).flatten(2).mT
    prefix, cells = imported.encoder.positions((4, 8))
    assert torch.equal(prefix, theirs.pos_embed[:, :1])
    torch.testing.assert_close(cells, wide)
    assert not imported.encoder.vit.pos_embed.requires_grad
    assert imported(parts.images(2, (64, 128)), parts.hide(2, (4, 8), 24)).loss.isfinite()


def scrambled(make: Callable[[], nn.Module]) -> nn.Module:
    """Random numbers in all that a checkpoint holds, but for the fixed filters of the histograms.

    Their bias is a multiple of 1/32, as the images are: gradients are exact, in whatever order they are summed up.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for name, parameter in model.named_parameters():
            deviation = 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2
            deviation = 0.5 if "pos_embed" in name or "token" in name else deviation
            if not name.startswith("hog_enc"):
                parameter += deviation * torch.randn_like(parameter)
            elif name.endswith("bias"):
                parameter.copy_(torch.randint(-16, 16, (2,)) / 32)
    return model.eval()


def through_the_command_line(theirs: nn.Module, args: argparse.Namespace, folder):
    content = {"model": theirs.state_dict(), "args": args, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, folder / "checkpoint-3.pth")
    assert main(["import", str(folder / "checkpoint-3.pth"), "--out", str(folder / "ours.safetensors")]) == 0
    return load_method(folder / "ours.safetensors")


def same(theirs: nn.Module, imported: nn.Module, grid: tuple[int, int], groups: dict[str, str]) -> None:
    """The same loss, and gradients of the same norm for each group of parameters."""
    images = (parts.images(3, (SIDE, SIDE)) * 32).round() / 32  # whose Sobel gradients are exact
    mask = parts.hide(3, grid, grid[0] * grid[1] * 5 // 8, seed=1)
    expected = theirs(images, mask.hidden.flatten(1) if grid == (4, 4) else mask.hidden)
    output = imported(images, mask=mask)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=LOSS)
    found = gradient_norms(imported, output.loss, list(groups.values()))
    wanted = gradient_norms(theirs, expected, list(groups))
    assert sum(norm > 0 for norm in wanted) > 0.8 * len(wanted)
    assert found == pytest.approx(wanted, rel=GRADIENT)


def gradient_norms(model: nn.Module, loss: Tensor, beginnings: list[str]) -> list[float]:
    """Of the parameters whose names begin so; all that learn belong to one of them."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
    squares = dict.fromkeys(beginnings, 0.0)
    for name, gradient in gradients.items():
        beginning = next(one for one in beginnings if name.startswith(one))
        squares[beginning] += 0.0 if gradient is None else float(gradient.square().sum())
    return [square**0.5 for square in squares.values()]

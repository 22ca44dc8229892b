"""Speed, measured beside peers in the same run: machines are noisy, ratios of alternating runs are less so."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from mimkit.compose import compose
from mimkit.data import find_images, read_image
from mimkit.precision import tune_attention
from mimkit.recipes import build
from mimkit.settings import Settings
from mimkit.views import RandomResizedCrop


def alternate(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, one after the other in every round, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Images per second of each, and of every peer the median over rounds of (its seconds / our seconds)."""
    ours, *peers = seconds
    result: dict[str, Any] = {f"{name}_images_per_second": images / median(times) for name, times in seconds.items()}
    for peer in peers:
        ratios = [theirs / mine for theirs, mine in zip(seconds[peer], seconds[ours], strict=True)]
        result[f"speed_against_{peer}"] = median(ratios)
    return result


def bench_step(
    recipe: str,
    settings: Settings,
    *,
    batch_size: int,
    precision: Literal["bf16", "fp32"],
    rounds: int,
    peers: bool,
    device: torch.device,
) -> dict[str, Any]:
    """Forward, backward and AdamW of one batch, random images; with `peers`, beside Hugging Face's ViTMAE.

    Raises:
        ValueError: peers are asked for where `transformers` is missing or the recipe has no peer.
    """
    composed = compose(recipe, settings)
    method = build(composed)
    tune_attention(method, device, precision)
    images = torch.randn(batch_size, composed.channels, *composed.image_size, device=device)
    works = {"mimkit": step_of(method, images, precision)}
    if peers:
        works["huggingface"] = step_of(
            huggingface_vitmae(recipe, method.encoder.name, composed.image_size), images, precision
        )
    seconds = alternate(works, rounds)
    return {
        "recipe": recipe,
        "backbone": method.encoder.name,
        "image_size": list(composed.image_size),
        "batch_size": batch_size,
        "precision": precision,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    } | summary(seconds, batch_size)


def step_of(model: nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """One training step as a function without arguments."""
    model.to(images.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if images.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def huggingface_vitmae(recipe: str, backbone: str, image_size: tuple[int, int]) -> nn.Module:
    """Hugging Face's MAE ViT-B/16 with MAE's own decoder."""
    if (recipe, backbone, image_size) != ("mae", "vit_base_patch16_224", (224, 224)):
        raise ValueError(
            f"--peers compares mae with vit_base_patch16_224 at 224, not {recipe}, {backbone}, {image_size}"
        )
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        raise ValueError("--peers needs transformers: pip install transformers") from error
    return ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True))


def bench_data(data: Path, *, image_size: tuple[int, int], images: int, rounds: int) -> dict[str, Any]:
    """Read and RandomResizedCrop files of a folder in one thread, beside what torchvision's ImageFolder does with each.

    Raises:
        BadImage: a file is no readable image.
    """
    from torchvision import transforms
    from torchvision.datasets.folder import pil_loader

    listed = find_images(data)
    chosen = listed.take(np.random.default_rng(0).permutation(len(listed))[:images])
    paths = [chosen.path(i) for i in range(len(chosen))]
    view, rng = RandomResizedCrop(), np.random.default_rng(0)
    peer = transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    def ours() -> None:
        for path in paths:
            torch.from_numpy(view(read_image(path), image_size, rng).transpose(2, 0, 1).copy())

    def theirs() -> None:
        for path in paths:
            peer(pil_loader(str(path)))

    seconds = alternate({"mimkit": ours, "torchvision": theirs}, rounds)
    return {"data": str(data), "images": len(paths), "image_size": list(image_size), "rounds": rounds} | summary(
        seconds, len(paths)
    )

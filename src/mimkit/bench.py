"""Speed, measured beside peers in the same run: machines are noisy, ratios of alternating runs are less so."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from mimkit.compose import compose
from mimkit.precision import tune_attention
from mimkit.recipes import build
from mimkit.settings import Settings


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
    recipes: Sequence[str],
    settings: Settings,
    *,
    batch_size: int,
    precision: Literal["bf16", "fp32"],
    rounds: int,
    peers: bool,
    device: torch.device,
) -> dict[str, Any]:
    """Forward, backward and AdamW of one batch of random images: speed and memory of recipes, side by side.

    Args:
        recipes: the first is compared with each of the others.
        settings: parts that replace theirs.
        batch_size, precision: of the step.
        rounds: repetitions; medians are reported.
        peers: also Hugging Face's ViTMAE, the peer of recipe mae.
        device: where to compute.

    Raises:
        ValueError: peers are asked for where `transformers` is missing or there is no peer.
    """
    works: dict[str, Callable[[], None]] = {}
    result: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "device": str(device)}
    result |= {"threads": torch.get_num_threads(), "rounds": rounds}
    for name in recipes:
        composed = compose(name, settings)
        method = build(composed)
        tune_attention(method, device, precision)
        kind = "dense" if method.encoder.complete else "visible"
        result[f"{name}_encoder"] = f"{method.encoder.name} at {composed.image_size}, {kind}"
        images = torch.randn(batch_size, composed.channels, *composed.image_size, device=device)
        works[name] = step_of(method, images, precision)
    if peers:
        works["huggingface"] = step_of(
            huggingface_vitmae(recipes[0], method.encoder.name, composed.image_size), images, precision
        )
    result |= summary(alternate(works, rounds), batch_size)
    memory = {name: peak_memory(name, settings, batch_size, precision, device) for name in recipes}
    result |= {f"{name}_peak_memory_mib": value for name, value in memory.items()}
    first = memory[recipes[0]]
    return result | {f"memory_against_{name}": first / value for name, value in memory.items() if name != recipes[0]}


def peak_memory(
    recipe: str, settings: Settings, batch_size: int, precision: Literal["bf16", "fp32"], device: torch.device
) -> float:
    """MiB that two steps need at most, weights and optimiser included: in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (recipe, settings, batch_size, precision, str(device)))


def _peak_memory(
    recipe: str, settings: Settings, batch_size: int, precision: Literal["bf16", "fp32"], device: str
) -> float:
    torch.nn.Linear(8, 8).to(device)(torch.randn(8, 8, device=device)).sum().backward()  # what torch itself takes
    before = resident("VmRSS")
    composed = compose(recipe, settings)
    method = build(composed)
    tune_attention(method, torch.device(device), precision)
    step = step_of(method, torch.randn(batch_size, composed.channels, *composed.image_size, device=device), precision)
    step()
    step()
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """This process's memory in MiB: VmRSS is what it has now, VmHWM the most it had (Linux; nan elsewhere)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


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

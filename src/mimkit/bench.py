"""Speed and memory of training steps, measured beside each other in one run.

Machines are noisy; ratios of alternating runs are less so.
"""

import importlib
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mimkit.compose import compose
from mimkit.lean import autocast
from mimkit.machine import git_commit
from mimkit.peers import PEERS, peer, refuse_unequal
from mimkit.precision import Precision, tune
from mimkit.recipes import build
from mimkit.settings import Settings

Mode = Literal["eager", "compile"]
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def alternate(works: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = "wall") -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, one after the other in every round, after one to warm up.

    The clock "cpu" counts what this process's threads compute: on a machine shared with other work, it leaves out the
    time that they wait for a core.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = now()
            work()
            if number:
                seconds[name].append(now() - started)
    return seconds


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step to measure.

    Args:
        recipe: ours, or the name of a peer.
        settings: parts that replace the recipe's.
        batch_size: images of a step.
        precision: bf16 is autocast.
        mode: compile compiles each block.
        device: torch's name for it.
    """

    recipe: str
    settings: Settings
    batch_size: int
    precision: Precision
    mode: Mode
    device: str

    @property
    def name(self) -> str:
        backbone = f" {self.settings.backbone}" if self.settings.backbone else ""
        return f"{self.recipe}{backbone} {self.precision} {self.mode}"


def bench_step(
    recipes: Sequence[str],
    settings: Settings,
    *,
    batch_size: int,
    backbones: Sequence[str | None] = (None,),
    precisions: Sequence[Precision] = ("fp32",),
    modes: Sequence[Mode] = ("eager",),
    rounds: int,
    peers: bool,
    device: torch.device,
    clock: Clock = "wall",
) -> dict[str, Any]:
    """Forward, backward and AdamW of one batch of random images, for recipes x backbones x precisions x modes.

    Args:
        recipes: names, as `compose` takes them.
        settings: parts that replace theirs.
        batch_size: images of a step.
        backbones: names; None is the recipe's own.
        precisions: bf16 is autocast.
        modes: compile compiles each block.
        rounds: repetitions; medians are reported, of ratios the medians over rounds.
        peers: also Hugging Face's and lightly's MAE, after the last recipe of each precision.
        device: where to compute.
        clock: see `alternate`.

    Returns:
        What was measured with, and under "cases" a row for each. `time_over_first` and `memory_over_first` compare with
        the first case of the same precision. `share_of_ceiling` is the floating-point operations that the step's
        matrix products and convolutions do in a second, over those of large matrix products in the same rounds.
        Memory is that of a process of its own, weights and optimiser included.

    Raises:
        ValueError: recipe, backbone or size are wrong, a peer's package is missing, or there is no peer for this.
    """
    if rounds < 1 or batch_size < 1:
        raise ValueError(f"--rounds and --batch-size must be at least 1, got {rounds} and {batch_size}")
    cases: list[Case] = []
    for precision in precisions:
        own = [
            Case(
                recipe=recipe,
                settings=replace(settings, backbone=backbone) if backbone else settings,
                batch_size=batch_size,
                precision=precision,
                mode=mode,
                device=str(device),
            )
            for recipe, backbone, mode in product(recipes, backbones, modes)
        ]
        cases += own
        cases += [replace(own[0], recipe=name, mode="eager") for name in PEERS] if peers else []

    rows, seconds, ceilings = measure(cases, rounds, clock, equal=peers)
    memory = {case.name: peak_memory(case) for case in cases}  # the models are gone: children share the machine's

    for case, row in zip(cases, rows, strict=True):
        first = next(other for other in cases if other.precision == case.precision).name
        pairs = zip(seconds[case.name], seconds[first], strict=True)
        taken = median(seconds[case.name])
        achieved = row["tflop"] / taken
        row |= {
            "images_per_second": batch_size / taken,
            "time_over_first": median(mine / its for mine, its in pairs),
            "peak_memory_mib": memory[case.name],
            "memory_over_first": memory[case.name] / memory[first],
            "tflops": achieved,
            "share_of_ceiling": achieved / ceilings[case.precision],
        }
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "clock": clock,
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": git_commit(),
        "ceiling_tflops": ceilings,
        "cases": rows,
    }


def measure(
    cases: Sequence[Case], rounds: int, clock: Clock, *, equal: bool
) -> tuple[list[dict[str, Any]], dict[str, list[float]], dict[str, float]]:
    """Facts of each case, seconds by case name, and TFLOP/s of large matrix products by precision.

    Raises:
        ValueError: the cases are to be equal to the peers' work, and one is not.
    """
    works: dict[str, Callable[[], object]] = {}
    rows: list[dict[str, Any]] = []
    for case in cases:
        works[case.name], facts = prepare(case)
        if equal and case.recipe not in PEERS:
            refuse_unequal(case.recipe, compose(case.recipe, case.settings), facts["backbone"])
        rows.append({"case": case.name, "recipe": case.recipe, "precision": case.precision, "mode": case.mode} | facts)
    products = {case.precision: MatrixProduct(torch.device(case.device), case.precision) for case in cases}
    seconds = alternate(works | {f"product {p}": work for p, work in products.items()}, rounds, clock)
    return rows, seconds, {p: work.flop / median(seconds[f"product {p}"]) / 1e12 for p, work in products.items()}


def as_table(result: dict[str, Any]) -> str:
    """What `bench_step` returned, for reading."""
    head = (
        f"{result['processor']}, {result['threads']} threads, torch {result['torch']}, batch {result['batch_size']}, "
        f"median of {result['rounds']} rounds, {result['clock']} time"
    )
    ceilings = ", ".join(f"{p} {tflops:.3g} TFLOP/s" for p, tflops in result["ceiling_tflops"].items())
    rows = [("", "images/s", "time", "memory MiB", "memory", "of ceiling")]
    rows += [
        (
            row["case"],
            f"{row['images_per_second']:.3g}",
            f"{row['time_over_first']:.2f}x",
            f"{row['peak_memory_mib']:.0f}",
            f"{row['memory_over_first']:.2f}x",
            f"{row['share_of_ceiling']:.0%}",
        )
        for row in result["cases"]
    ]
    first = max(len(row[0]) for row in rows)
    lines = [head, f"large matrix products: {ceilings}", ""]
    lines += ["".join([row[0].ljust(first), *(cell.rjust(12) for cell in row[1:])]) for row in rows]
    return "\n".join([*lines, "", "time and memory: over the first case of the same precision"])


def prepare(case: Case, *, count: bool = True) -> tuple[Callable[[], None], dict[str, Any]]:
    """The case's step as a function without arguments, and its facts: encoder, parameters, and a step's operations,
    which are counted in an eager step before.
    """
    device = torch.device(case.device)
    composed = compose("mae" if case.recipe in PEERS else case.recipe, case.settings)
    facts: dict[str, Any] = {}
    if case.recipe in PEERS:
        model = peer(case.recipe)
    else:
        model = build(composed)
        tune(model, device, case.precision)
        facts["backbone"] = model.encoder.name
        facts["encoder"] = "dense" if model.encoder.complete else "visible"
    facts["image_size"] = list(composed.image_size)
    facts["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.to(device).train()
    images = torch.randn(case.batch_size, composed.channels, *composed.image_size, device=device)

    ours = case.recipe not in PEERS  # others run in autocast as it comes
    cast = (
        autocast(device, case.precision)
        if ours
        else torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16")
    )

    def gradients() -> None:
        with cast:
            loss = model(images).loss
        loss.backward()

    if count:
        with FlopCounterMode(display=False) as counter:
            gradients()
        model.zero_grad(set_to_none=True)
        facts["tflop"] = counter.get_total_flops() / 1e12
    if case.mode == "compile":
        compile_blocks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, facts


def compile_blocks(model: nn.Module) -> None:
    """Have each transformer or convolution block compiled when it is first called."""
    for name, container in model.named_modules():
        if name.endswith("blocks"):
            for block in container.children():
                block.compile(fullgraph=True)


class MatrixProduct:
    """Square matrix products in one precision, large enough to keep a device at its limit.

    Attributes:
        flop: floating-point operations of one call.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device = device
        side, self.times = (8192, 10) if device.type == "cuda" else (2048, 3)
        number = torch.bfloat16 if precision == "bf16" else torch.float32
        self.left, self.right = (torch.randn(side, side, device=device, dtype=number) for _ in range(2))
        self.flop = 2 * side**3 * self.times

    def __call__(self) -> None:
        for _ in range(self.times):
            self.left @ self.right
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_memory(case: Case) -> float:
    """MiB that two steps need at most, weights and optimiser included: in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (case,))


def _peak_memory(case: Case) -> float:
    small = torch.nn.Linear(8, 8).to(case.device)
    small(torch.randn(8, 8, device=case.device)).sum().backward()  # what torch itself takes
    if case.recipe in PEERS:
        importlib.import_module(PEERS[case.recipe][0])  # and what the peer's package does
    before = resident("VmRSS")
    step, _ = prepare(case, count=False)
    step()
    step()
    if torch.device(case.device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """This process's memory in MiB: VmRSS is what it has now, VmHWM the most it had (Linux; nan elsewhere)."""
    return next((int(line.split()[1]) / 1024 for line in lines_of("/proc/self/status", field)), float("nan"))


def processor() -> str:
    """The processor's name where Linux tells it."""
    return next((line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo", "model name")), "unknown")


def lines_of(file: str, start: str) -> list[str]:
    """Lines of a file that begin so; none where there is no such file."""
    path = Path(file)
    return [line for line in path.read_text().splitlines() if line.startswith(start)] if path.exists() else []

"""Speed and memory of training steps, measured beside each other in one run.

Machines are noisy; ratios of alternating runs are less so.
"""

import importlib
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from mimkit.backbones import count_parameters
from mimkit.bench.peers import PEERS, peer, refuse_unequal
from mimkit.compose import compose
from mimkit.recipes import build
from mimkit.recipes.efficiency import tune
from mimkit.settings import Settings
from mimkit.training.blocks import prepare_blocks, require_compiler
from mimkit.training.hardware import device_name, git_commit, resident
from mimkit.training.optim import adamw
from mimkit.training.precision import Precision, autocast, for_training

Mode = Literal["eager", "compile", "graphs"]
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def alternate(works: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = "wall") -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, one after the other in every round, after one to warm up.

    The clock "cpu" counts the processor time of this process's threads, without the time that they wait for a core on
    a machine shared with other work.
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
        precision: bf16 is autocast; see `Train`.
        mode: compile compiles each block; graphs the whole, and replays it as CUDA graphs.
        device: torch's name for it.
        recompute: keep only the inputs of each block for the backward pass.
    """

    recipe: str
    settings: Settings
    batch_size: int
    precision: Precision
    mode: Mode
    device: str
    recompute: bool = False

    @property
    def name(self) -> str:
        backbone = f" {self.settings.backbone}" if self.settings.backbone else ""
        recompute = " recompute" if self.recompute else ""
        return f"{self.recipe}{backbone} {self.precision} {self.mode}{recompute}"


def bench_step(
    recipes: Sequence[str],
    settings: Settings,
    *,
    batch_size: int,
    backbones: Sequence[str | None] = (None,),
    precisions: Sequence[Precision] = ("fp32",),
    modes: Sequence[Mode] = ("eager",),
    recompute: bool = False,
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
        precisions: bf16 is autocast; see `Train`.
        modes: compile compiles each block; graphs the whole, and replays it as CUDA graphs.
        recompute: also with only the inputs of each block kept for the backward pass, in each mode.
        rounds: repetitions; medians are reported, of ratios the medians over rounds.
        peers: also Hugging Face's and lightly's MAE, after the last recipe of each precision.
        device: where to compute.
        clock: see `alternate`.

    Returns:
        The conditions of the measurement, and under "cases" a row for each case. `time_over_first` and
        `memory_over_first` compare with the first case of the same precision. `share_of_ceiling` is the floating-point
        operations per second of the step's matrix products and convolutions, over those of large matrix products in
        the same rounds. Memory is that of a process of its own, weights and optimiser included.

    Raises:
        ValueError: recipe, backbone, size or mode are wrong, a peer's package is missing, or there is no peer for this.
    """
    if rounds < 1 or batch_size < 1:
        raise ValueError(f"--rounds and --batch-size must be at least 1, got {rounds} and {batch_size}")
    if peers and "bf16-pure" in precisions:
        raise ValueError("--peers are measured with --precision bf16 or fp32, not bf16-pure")
    if "graphs" in modes and device.type != "cuda":
        raise ValueError(f"--mode graphs replays CUDA graphs, which --device {device} does not have")
    for mode in modes:
        if mode != "eager":
            require_compiler(device, f"--mode {mode}")
    cases: list[Case] = []
    for precision in precisions:
        common = {"batch_size": batch_size, "precision": precision, "device": str(device)}
        cases += cases_of(recipes, settings, backbones, modes, recompute=recompute, peers=peers, **common)

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
        "processor": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": git_commit(),
        "ceiling_tflops": ceilings,
        "cases": rows,
    }


def cases_of(
    recipes: Sequence[str],
    settings: Settings,
    backbones: Sequence[str | None],
    modes: Sequence[Mode],
    *,
    recompute: bool,
    peers: bool,
    **common: Any,
) -> list[Case]:
    """The cases of one precision, recipes first and peers last, with the other fields of `Case` in common."""
    own = [
        Case(
            recipe=recipe,
            settings=replace(settings, backbone=backbone) if backbone else settings,
            mode=mode,
            recompute=recomputed,
            **common,
        )
        for recipe, backbone, mode, recomputed in product(recipes, backbones, modes, (False, True)[: 1 + recompute])
    ]
    return own + [replace(own[0], recipe=name, mode="eager", recompute=False) for name in PEERS if peers]


def measure(
    cases: Sequence[Case], rounds: int, clock: Clock, *, equal: bool
) -> tuple[list[dict[str, Any]], dict[str, list[float]], dict[str, float]]:
    """A row for each case, seconds by case name, and TFLOP/s of large matrix products by precision.

    Raises:
        ValueError: the cases are to be equal to the peers' work, and one is not.
    """
    works: dict[str, Callable[[], object]] = {}
    rows: list[dict[str, Any]] = []
    for case in cases:
        works[case.name], row = prepare(case)
        if equal and case.recipe not in PEERS:
            refuse_unequal(case.recipe, compose(case.recipe, case.settings), row["backbone"])
        rows.append(
            {
                "case": case.name,
                "recipe": case.recipe,
                "precision": case.precision,
                "mode": case.mode,
                "recompute": case.recompute,
            }
            | row
        )
    products = {case.precision: MatrixProduct(torch.device(case.device), case.precision) for case in cases}
    seconds = alternate(works | {f"product {p}": work for p, work in products.items()}, rounds, clock)
    return rows, seconds, {p: work.flop / median(seconds[f"product {p}"]) / 1e12 for p, work in products.items()}


def as_table(result: dict[str, Any]) -> str:
    """The result of `bench_step` as a table of text."""
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
    """The case's step as a function without arguments, and its row: encoder, parameters, and operations of a step,
    which are counted in an eager step first.
    """
    device = torch.device(case.device)
    composed = compose("mae" if case.recipe in PEERS else case.recipe, case.settings)
    row: dict[str, Any] = {}
    if case.recipe in PEERS:
        model = peer(case.recipe)
    else:
        model = build(composed)
        tune(model, device, case.precision)
        row["backbone"] = model.encoder.name
        row["encoder"] = "dense" if model.encoder.complete else "visible"
    row["image_size"] = list(composed.image_size)
    row["parameters"] = count_parameters(model, trainable_only=True)
    for_training(model, device, case.precision)
    images = torch.randn(case.batch_size, composed.channels, *composed.image_size, device=device)

    ours = case.recipe not in PEERS  # peers run in torch's own autocast
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
        row["tflop"] = counter.get_total_flops() / 1e12
    prepare_blocks(model, compiled=case.mode == "compile", recomputed=case.recompute)
    if case.mode == "graphs":
        model.compile(mode="reduce-overhead", dynamic=False)
    optimizer = adamw(model.parameters(), case.precision, lr=1e-4)

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, row


class MatrixProduct:
    """Square matrix products in one precision, large enough for the device's highest throughput.

    Attributes:
        flop: floating-point operations of one call.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device = device
        side, self.times = (8192, 10) if device.type == "cuda" else (2048, 3)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.left, self.right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        self.flop = 2 * side**3 * self.times

    def __call__(self) -> None:
        for _ in range(self.times):
            self.left @ self.right
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_memory(case: Case) -> float:
    """Peak MiB of two steps, weights and optimiser included, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (case,))


def _peak_memory(case: Case) -> float:
    small = torch.nn.Linear(8, 8).to(case.device)
    small(torch.randn(8, 8, device=case.device)).sum().backward()  # load what torch itself needs
    if case.recipe in PEERS:
        importlib.import_module(PEERS[case.recipe][0])  # and what the peer's package needs
    before = resident("VmRSS")
    step, _ = prepare(case, count=False)
    step()
    step()
    if torch.device(case.device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before

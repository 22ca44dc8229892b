"""The command that measures: bench."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from mimkit.settings import Settings


def bench(
    what: Positional[Literal["step", "data"]],
    *,
    recipe: tuple[str, ...] = ("mae",),
    data: Path | None = None,
    backbone: tuple[str, ...] = (),
    image_size: tuple[int, ...] | None = None,
    batch_size: int = 16,
    images: int = 256,
    precision: tuple[Literal["bf16", "bf16-pure", "fp32"], ...] = ("fp32",),
    mode: tuple[Literal["eager", "compile", "graphs"], ...] = ("eager",),
    recompute: bool = False,
    rounds: int = 5,
    peers: bool = False,
    device: str = "auto",
    clock: Literal["wall", "cpu"] = "wall",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Throughput and memory of a training step, or throughput of reading images, beside peers in the same run.

    Args:
        what: step, or data.
        recipe: for step: names from `mimkit recipes`; the first is compared with all others.
        data: for data: a folder of images.
        backbone: for step: one or several instead of the recipe's.
        image_size: side of the images in pixels, or height and width; default: the recipe's, or 224.
        batch_size: for step: images per step.
        images: for data: files to read in each round.
        precision: for step: bf16 autocast, bfloat16 weights too, float32, or several of them.
        mode: for step: eager, with each block compiled, with the whole step replayed as CUDA graphs, or several.
        recompute: for step: each mode also with only the inputs of blocks kept for the backward pass.
        rounds: repetitions; medians are reported.
        peers: for step: also Hugging Face's and lightly's MAE (pip install mimkit[bench]).
        device: for step: cpu, cuda, ...
        clock: wall, or cpu for processor time, which a CPU shared with other work disturbs less.
        as_json: print JSON.
    """
    from mimkit.bench import step as benches
    from mimkit.settings import as_size
    from mimkit.training.hardware import choose_device

    size = as_size(image_size)
    if what == "data":
        if data is None:
            raise ValueError("bench data needs --data, a folder of images")
        from mimkit.bench.data import bench_data

        result = bench_data(data, image_size=size or (224, 224), images=images, rounds=rounds, clock=clock)
    else:
        result = benches.bench_step(
            recipe,
            Settings(image_size=size),
            batch_size=batch_size,
            backbones=backbone or (None,),
            precisions=precision,
            modes=mode,
            recompute=recompute,
            rounds=rounds,
            peers=peers,
            device=choose_device(device),
            clock=clock,
        )
    if as_json:
        print(json.dumps(result, indent=1))
    elif what == "step":
        print(benches.as_table(result))
    else:
        print(
            "\n".join(
                f"{name:36}{value:.3g}" if isinstance(value, float) else f"{name:36}{value}"
                for name, value in result.items()
            )
        )
    return 0

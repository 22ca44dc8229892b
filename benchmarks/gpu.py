"""Measures on a GPU what benchmarks/README.md has no figures for yet, and writes one JSON file.

    python benchmarks/gpu.py --out gpu.json                        steps of ViT-B and ViT-L, eager, with compiled blocks
                                                                   and as CUDA graphs, beside the peers
    python benchmarks/gpu.py --out gpu.json --data PACK            also end to end, from a file that `mimkit pack` wrote

Bars: the ViT-B step in bf16 at least twice as fast as Hugging Face's eager one; ViT-L at 45 % of the card's own matrix
products or more; end to end at least 90 % of the bare step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="a packed file; short side 256")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbones", nargs=2, default=["vit_base_patch16_224", "vit_large_patch16_224"])
    parser.add_argument("--no-peers", action="store_true")
    flags = parser.parse_args()
    common = ["--batch-size", str(flags.batch_size), "--device", flags.device, "--precision", "bf16"]
    common += ["--mode", "compile", "eager", *(["graphs"] if flags.device.startswith("cuda") else [])]
    common += ["--rounds", str(flags.rounds)]
    base, large = flags.backbones
    result = {
        "base": bench("--backbone", base, *common, *([] if flags.no_peers else ["--peers"])),
        "large": bench("--backbone", large, *common, "--recompute"),
    }
    if flags.data:
        cases = result["base"]["cases"]
        step = next(case["images_per_second"] for case in cases if case["mode"] == "compile")
        speed = end_to_end(flags.data, base, flags.batch_size, flags.device)
        result["end_to_end"] = {"images_per_second": speed, "share_of_step": speed / step}
    flags.out.write_text(json.dumps(result, indent=1))


def mimkit(*arguments: str) -> str:
    """What a command of mimkit prints."""
    return subprocess.run(
        [sys.executable, "-m", "mimkit", *arguments], check=True, stdout=subprocess.PIPE
    ).stdout.decode()


def bench(*arguments: str) -> dict[str, Any]:
    return json.loads(mimkit("bench", "step", *arguments, "--json"))


def end_to_end(data: str, backbone: str, batch_size: int, device: str) -> float:
    """Images per second of a short run with compiled blocks, the first rows of its speed log left out."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        size = str(batch_size)
        mimkit(
            *("pretrain", "mae", "--data", data, "--out", str(run), "--backbone", backbone, "--device", device),
            *("--epochs", "2", "--batch-size", size, "--micro-batch", size, "--precision", "bf16", "--compile"),
        )
        rows = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()]
    return median(row["images_per_second"] for row in rows[len(rows) // 4 :])


if __name__ == "__main__":
    main()

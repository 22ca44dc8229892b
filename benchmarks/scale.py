"""What the number of images costs: start-up and memory of the index and of the loader, at two sizes a hundred apart.

    python benchmarks/scale.py
    python benchmarks/scale.py --images 1000 100000 --kinds folder pack --keep FOLDER

Makes folders of as many JPEG files in a thousand classes (hard links to a small picture for each class), a list file
of them, a pack, and tar shards of 1,300 (links to one file), measures each in a process of its own, and prints a table.
1.3 million images take 1.3 million directory entries, 1 GB and about five minutes; all is removed at the end.

Times are processor time, which other work disturbs less, with warm caches: the files have just been made. Memory is
what is there beyond the imports; that of a worker is all of it. Linux only: it reads /proc.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mimkit.data import Samples, TrainBatches, find_images, pack, read_image, split
from mimkit.views import CenterCrop

CLASSES, PER_SHARD, BATCH, BATCHES, WORKERS = 1000, 1300, 64, 200, 2
KINDS = ("folder", "list", "pack", "shards")
COLUMNS = {
    "split_seconds": "split, s",
    "fingerprint_seconds": "fingerprint, s",
    "peak_mib": "peak, MiB",
    "kept_mib": "kept, MiB",
    "first_batch_ms": "first batch, ms",
    "batch_ms": "batch, ms",
    "worker_private_mib": "worker: private, MiB",
    "worker_pss_mib": "PSS, MiB",
    "worker_rss_mib": "RSS, MiB",
}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 77).save(buffer, "JPEG")
    return buffer.getvalue()


def names(count: int) -> list[str]:
    return [f"n{i % CLASSES:08d}/n{i % CLASSES:08d}_{i // CLASSES}.JPEG" for i in range(count)]


def make(kind: str, root: Path, count: int) -> Path:
    """The data, unless they are there already, and where they lie."""
    places = {
        "folder": root / "folder",
        "list": root / "list.txt",
        "pack": root / "one.pack",
        "shards": root / "shards",
    }
    place = places[kind]
    if place.exists():
        return place
    if kind == "folder":
        for label in range(min(CLASSES, count)):
            folder = place / f"n{label:08d}"
            folder.mkdir(parents=True)
            first = folder / f"n{label:08d}_0.JPEG"
            first.write_bytes(picture())
            for number in range(1, len(range(label, count, CLASSES))):
                os.link(first, folder / f"n{label:08d}_{number}.JPEG")
    elif kind == "list":
        make("folder", root, count)
        place.write_text("\n".join(f"folder/{name}\t{name[:9]}" for name in names(count)))
    elif kind == "pack":
        data = picture()
        pack._shrink = lambda *_: (data, (8, 8))  # decoding them is not what is measured here
        pack.write_pack(find_images(make("list", root, count)), None, place)
    else:
        place.mkdir()
        with tarfile.open(root / "one.tar", "w") as archive:
            for number in range(min(PER_SHARD, count)):
                for suffix, content in (("jpeg", picture()), ("cls", str(number % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        for number in range(-(-count // PER_SHARD)):
            (place / f"some-{number:06d}.tar").symlink_to(root / "one.tar")
        find_images(place)  # writes the shards' indices, once and for all
    return place


def measure(data: Path) -> dict[str, float]:
    """In a process that has done nothing else."""
    read_image(picture())  # what Pillow loads on first use is no part of it
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of all the imports
    before = memory("VmRSS", "status")
    (train, held_out), split_seconds = timed(lambda: split(data))
    result = {"images": len(train) + len(held_out), "split_seconds": split_seconds}
    result["fingerprint_seconds"] = timed(lambda: (train.fingerprint(), held_out.fingerprint()))[1]
    result["peak_mib"] = memory("VmHWM", "status") - before
    result["kept_mib"] = memory("VmRSS", "status") - before
    samples = Samples(train, view=CenterCrop(), size=(8, 8))
    batches = TrainBatches(samples, batch_size=BATCH)
    result["first_batch_ms"] = 1000 * timed(lambda: batches.micro_batch_at(0))[1]
    result["batch_ms"] = 1000 * timed(lambda: [batches.micro_batch_at(i) for i in range(1, 51)])[1] / 50
    running = TrainBatches(samples, batch_size=BATCH, workers=WORKERS).from_step(0)
    for _ in itertools.islice(running, BATCHES):
        pass
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    result["worker_rss_mib"] = max(memory("Rss", "smaps_rollup", worker) for worker in workers)
    result["worker_pss_mib"] = max(memory("Pss", "smaps_rollup", worker) for worker in workers)
    private = [[memory(f"Private_{kind}", "smaps_rollup", worker) for kind in ("Clean", "Dirty")] for worker in workers]
    result["worker_private_mib"] = max(map(sum, private))
    running.close()
    return result


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def memory(name: str, file: str, process: str = "self") -> float:
    """MiB."""
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[13_000, 1_300_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--keep", type=Path, help="make them here, and leave them; what is there already is used")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as passing:
        for kind, count in itertools.product(options.kinds, options.images):
            root = (options.keep or Path(passing)) / str(count)
            root.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-W", "ignore", __file__, "--measure", str(make(kind, root, count))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            rows.append({"kind": kind} | json.loads(done.stdout))
            print(rows[-1], file=sys.stderr)
    print(f"| | images | {' | '.join(COLUMNS.values())} |")
    print("| --- |" + " --- |" * (len(COLUMNS) + 1))
    for row in rows:
        values = (f"{row[name]:.{2 if name.endswith('seconds') else 0 if 'mib' in name else 1}f}" for name in COLUMNS)
        print(f"| {row['kind']} | {row['images']:,} | {' | '.join(values)} |")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

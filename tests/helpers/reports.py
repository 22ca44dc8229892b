"""Run folders as training leaves them, and report pages read back."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from mimkit.report import write_report

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Fails on tags that do not nest, and gathers what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> repeats an attribute: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def probe(step: int, linear: float | None = None, **more: object) -> dict[str, object]:
    record = {"kind": "probe", "step": step, "epoch": step / 10, "masked_loss": 1.0 - step / 1000, "train_images": 900}
    record |= {"effective_rank": 10.0 + step / 10, "feature_std": 0.4, "test_images": 1000, "classes": 10}
    return record | ({} if linear is None else {"linear": linear, "knn": linear - 5}) | more


def write_run(
    folder: Path,
    *,
    probes: list[dict[str, object]] | None = None,
    more: list[dict[str, object]] | None = None,
    upto: int = 100,
    pictures: int = 2,
    settings: dict[str, object] | None = None,
    **info: object,
) -> Path:
    folder.mkdir(parents=True)
    facts = {
        "mimkit": "0.1.0",
        "recipe": "mae",
        "settings": {"batch_size": 8, "lr": 1.5e-4, "out": str(folder), **(settings or {})},
        "parts": {"target": "NormalizedPixels()", "distance": "squared"},
        "data": {"path": "photos", "train_images": 900, "held_out_images": 1000, "classes": ["a", "b"]},
        "versions": {"python": "3.12"},
        "git_commit": None,
        "steps": 100,
        "steps_per_epoch": 10,
        "parameters": {"encoder": 5_524_416},
        **info,
    }
    (folder / "run.json").write_text(json.dumps(facts))
    log = [probe(0, 38.9), probe(100, 45.2)] if probes is None else probes
    for step in range(10, upto + 1, 10):
        fusion = {"fusion/block_0": 1 - step / 200, "fusion/block_11": step / 200}
        log = [*log, {"kind": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "lr": 1e-4, **fusion}]
        log[-1]["grad_norm"] = 0.5
    log += [*(more or []), *([{"kind": "end", "step": upto}] if upto == 100 else [])]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    speed = [{"step": s, "images_per_second": 800.0, "data_wait": 0.25, "seconds": s} for s in range(10, upto + 1, 10)]
    (folder / "speed.jsonl").write_text("".join(json.dumps(record) + "\n" for record in speed))
    if pictures:
        sheets = folder / "reconstructions"
        sheets.mkdir()
        (sheets / "legend.json").write_text(json.dumps({"columns": ["original", "visible"], "note": "As they are."}))
        for k in range(pictures):
            Image.fromarray(np.full((8, 16, 3), 5 * k, dtype=np.uint8)).save(sheets / f"step-{k * 10:08d}.png")
    return folder


def segment(step: int, miou: object, **more: object) -> dict[str, object]:
    return {"kind": "segment", "step": step, "epoch": step / 10, "mIoU": miou, "classes": 21, **more}


def write_segmentation(folder: Path, rows: list[dict[str, object]], upto: int = 100, **info: object) -> Path:
    """A run of another kind than pre-training: no recipe, no probes, no pictures."""
    parts = {"encoder": {"name": "VisibleViT", "values": {"width": 192}}}
    changed = {"format": 2, "kind": "segment", "recipe": None, "parts": parts, **info}
    return write_run(folder, probes=[], more=rows, pictures=0, upto=upto, **changed)


def chart_of(page: Page, title: str) -> list[tuple[str, dict[str, str | None]]]:
    """The tags of one chart, from the element that bears its title to the next caption."""
    start = next(i for i, (_, attrs) in enumerate(page.tags) if attrs.get("aria-label") == title)
    end = next(i for i in range(start, len(page.tags)) if page.tags[i][0] == "figcaption")
    return page.tags[start:end]


def labels_of(page: Page) -> list[str]:
    return [attrs["aria-label"] or "" for tag, attrs in page.tags if tag == "svg" and "aria-label" in attrs]


def path_of(tags: list[tuple[str, dict[str, str | None]]], css: str) -> str | None:
    return next((attrs["d"] for tag, attrs in tags if tag == "path" and attrs.get("class") == css), None)


def page_of(tmp_path: Path, *folders: Path) -> Page:
    return Page(write_report(list(folders), tmp_path / "out" / "report.html").read_text(encoding="utf-8"))

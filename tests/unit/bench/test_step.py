import itertools
import json
from pathlib import Path

import pytest
import torch

from mimkit.bench import step as bench
from mimkit.bench.step import Case, MatrixProduct, alternate, as_table, bench_step, prepare
from mimkit.settings import Settings

TINY = Settings(data=Path(), backbone="test_vit", image_size=(32, 32), decoder_width=32, decoder_depth=1)
CPU = torch.device("cpu")


def case(**options) -> Case:
    common = {"recipe": "mae", "settings": TINY, "batch_size": 2, "precision": "fp32", "mode": "eager", "device": "cpu"}
    return Case(**(common | options))


def test_works_alternate_and_the_first_round_warms_up(monkeypatch):
    clock, calls = itertools.count(), []
    monkeypatch.setitem(bench.CLOCKS, "wall", lambda: next(clock))
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [1, 1], "b": [1, 1]}


def test_cpu_time_leaves_out_waiting():
    import time

    (waited,) = alternate({"sleep": lambda: time.sleep(0.05)}, rounds=1, clock="cpu")["sleep"]
    assert waited < 0.04


@pytest.fixture
def known_numbers(monkeypatch):
    """Seconds and memory that do not depend on the machine: of each case twice the one before."""
    monkeypatch.setattr(
        bench, "alternate", lambda works, rounds, clock: {n: [2.0**i] * rounds for i, n in enumerate(works)}
    )
    sizes = itertools.count(1)
    monkeypatch.setattr(bench, "peak_memory", lambda case: 100.0 * next(sizes))


def test_cases_are_compared_with_the_first_of_their_precision(known_numbers):
    result = bench_step(
        ["mae", "pixmim"],
        TINY,
        batch_size=4,
        backbones=[None, "test_vit2"],
        precisions=["fp32", "bf16"],
        rounds=3,
        peers=False,
        device=CPU,
    )
    rows = result["cases"]
    names = ["mae", "mae test_vit2", "pixmim", "pixmim test_vit2"]
    expected = [f"{name} {precision} eager" for precision in ("fp32", "bf16") for name in names]
    assert [row["case"].replace(" test_vit ", " ") for row in rows] == expected
    assert [row["time_over_first"] for row in rows] == [1, 2, 4, 8] * 2
    assert [row["images_per_second"] for row in rows[:3]] == [4, 2, 1]
    assert [row["memory_over_first"] for row in rows] == [1, 2, 3, 4, 1, 6 / 5, 7 / 5, 8 / 5]
    ceiling = MatrixProduct(CPU, "fp32").flop / 2**8 / 1e12  # the ninth piece of work
    assert result["ceiling_tflops"]["fp32"] == pytest.approx(ceiling)
    assert rows[1]["share_of_ceiling"] == pytest.approx(rows[1]["tflop"] / 2 / ceiling)
    json.dumps(result)
    table = as_table(result).splitlines()
    assert len({len(line) for line in table[3:-2]}) == 1  # columns are aligned
    assert all(any(line.startswith(row["case"]) for line in table) for row in rows)


def test_operations_of_a_step_are_counted():
    _, one = prepare(case())
    _, two = prepare(case(batch_size=4))
    assert two["tflop"] == pytest.approx(2 * one["tflop"], rel=0.01)
    # Forward and backward of one linear layer are three products of 2·rows·inputs·outputs operations each.
    assert one["tflop"] > 3 * 2 * (2 * 4) * (16 * 16 * 3) * 32 / 1e12


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_measured_in_a_process_of_its_own():
    small, large = (bench.peak_memory(case(batch_size=size)) for size in (2, 512))
    images = (512 - 2) * 3 * 32 * 32 * 4 / 2**20
    assert small > 0
    assert large > small + images


def test_each_mode_is_measured_as_it_is_and_computing_blocks_again(known_numbers, monkeypatch):
    prepared = []
    monkeypatch.setattr(bench, "require_compiler", lambda device, flag: None)
    monkeypatch.setattr(bench, "prepare_blocks", lambda model, **options: prepared.append(options))
    both: list[bench.Mode] = ["eager", "compile"]
    common = {"batch_size": 2, "rounds": 1, "peers": False, "device": CPU}
    rows = bench_step(["mae"], TINY, modes=both, recompute=True, **common)["cases"]
    names = ["eager", "eager recompute", "compile", "compile recompute"]
    assert [row["case"] for row in rows] == [f"mae test_vit fp32 {name}" for name in names]
    assert [(row["mode"], row["recompute"]) for row in rows] == list(itertools.product(both, (False, True)))
    assert prepared == [
        {"compiled": mode == "compile", "recomputed": again} for mode, again in itertools.product(both, (False, True))
    ]
    assert len({row["tflop"] for row in rows}) == 1  # what is computed again does not count


def test_graphs_of_other_devices_are_refused():
    with pytest.raises(ValueError, match="--mode graphs replays CUDA graphs, which --device cpu does not have"):
        bench_step(["mae"], TINY, batch_size=2, modes=["graphs"], rounds=1, peers=False, device=CPU)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"batch_size": 0}])
def test_counts_must_be_positive(options):
    common = {"batch_size": 2, "rounds": 1, "peers": False, "device": CPU}
    with pytest.raises(ValueError, match="--rounds and --batch-size must be at least 1, got"):
        bench_step(["mae"], TINY, **(common | options))

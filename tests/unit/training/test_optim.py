"""Learning rates over a run, the values they are made of, and which parameters are decayed."""

import math
from dataclasses import replace

import pytest
import timm
from torch import nn

from helpers import parts
from helpers.regression import (
    VALUES,
)
from mimkit.compose import TRAIN_SETTINGS
from mimkit.errors import flag
from mimkit.readouts import Fused
from mimkit.training.optim import Train, parameter_groups


def test_learning_rate_is_the_formula():
    """METHODS: warm-up linear from 0 per iteration, then min + (peak − min)/2 · (1 + cos(π(e − w)/(E − w))).

    Peak and minimum follow the batch.
    """
    values = Train(epochs=10, batch_size=512, base_lr=1e-3, lr_batch=256, warmup_epochs=2.5, min_lr=1e-5)
    peak, last = 1e-3 * 512 / 256, 1e-5 * 512 / 256
    assert values.peak_lr == peak
    for step in range(10 * 7 + 1):
        epoch = step / 7
        if epoch < 2.5:
            expected = peak * epoch / 2.5
        else:
            expected = last + (peak - last) / 2 * (1 + math.cos(math.pi * (epoch - 2.5) / 7.5))
        assert values.lr(epoch) == pytest.approx(expected, rel=1e-12)
    assert values.lr(0) == 0
    assert values.lr(2.5) == peak
    assert values.lr(10) == pytest.approx(last)


def test_warmup_may_start_above_zero():
    """SimMIM's: from warmup_lr, which follows the batch as the peak does."""
    values = Train(epochs=10, batch_size=1024, base_lr=2e-4, lr_batch=512, warmup_epochs=4, warmup_lr=1e-6)
    assert values.lr(0) == pytest.approx(2e-6)
    assert values.lr(1) == pytest.approx(2e-6 + (4e-4 - 2e-6) / 4)
    assert values.lr(3) == pytest.approx(2e-6 + (4e-4 - 2e-6) * 3 / 4)
    assert values.lr(4) == values.peak_lr == pytest.approx(4e-4)
    assert values.lr(10) == 0  # the cosine still ends at min_lr


def test_milestones_take_the_place_of_the_cosine():
    """SimMIM's long run: warm-up, then the peak, a tenth of it from the first drop on, a hundredth from the second."""
    values = Train(epochs=10, batch_size=256, base_lr=1e-3, warmup_epochs=2, min_lr=1e-4, milestones=(6, 8.5))
    assert values.lr(1) == pytest.approx(5e-4)
    expected = {2: 1e-3, 4: 1e-3, 5.99: 1e-3, 6: 1e-4, 8.49: 1e-4, 8.5: 1e-5, 10: 1e-5}
    assert {epoch: values.lr(epoch) for epoch in expected} == pytest.approx(expected)


def test_all_rates_follow_the_batch_alike():
    """One schedule, twice the batch: each rate is twice as high."""
    for more in ({"min_lr": 1e-5, "warmup_lr": 1e-6}, {"milestones": (7,), "warmup_lr": 1e-6}):
        one, two = (Train(epochs=10, batch_size=b, base_lr=1e-3, warmup_epochs=3, **more) for b in (128, 256))
        for epoch in (0, 1.5, 3, 5, 7, 9.75):
            assert two.lr(epoch) == pytest.approx(2 * one.lr(epoch), rel=1e-12)


def test_learning_rate_without_warmup_starts_at_the_peak():
    values = Train(epochs=10, batch_size=256, base_lr=1e-3, warmup_epochs=0)
    assert values.lr(0) == 1e-3
    assert values.lr(5) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": -8},
        {"base_lr": 0.0},
        {"base_lr": math.nan},
        {"base_lr": math.inf},
        {"clip_grad": 0.0},
        {"clip_grad": -1.0},
        {"ema_decay": 1.0},
        {"ema_decay": -0.5},
        {"weight_decay": -0.05},
        {"min_lr": 1.0},
        {"min_lr": -1e-6},
        {"warmup_lr": 0.4},
        {"warmup_lr": -1e-6},
        {"warmup_lr": math.nan},
        {"warmup_epochs": 3},
        {"warmup_epochs": -1},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_flag(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{flag(TRAIN_SETTINGS[name])} .*{value:g}"):
        replace(VALUES, **wrong)


def test_training_values_have_their_types():
    """A loop counts steps up to whole epochs; records of a run folder are held against the types too."""
    with pytest.raises(ValueError, match=r"^--epochs takes a whole number, got 2\.5$"):
        replace(VALUES, epochs=2.5)
    with pytest.raises(ValueError, match=r"^--ema takes a number, got '0\.9' \(a str\)$"):
        replace(VALUES, ema_decay="0.9")
    assert type(replace(VALUES, epochs=3.0).epochs) is int


def decayed_by_mae(name: str, parameter: nn.Parameter) -> bool:
    """The published rule: neither one-dimensional parameters nor biases are decayed, everything else is."""
    return parameter.ndim > 1 and not name.endswith(".bias")


@pytest.mark.parametrize("decay_tokens", [True, False])
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_what_is_decayed(backbone, decay_tokens):
    """Every trained parameter stands in one group: by MAE's rule, and tokens, which have three dimensions, as asked."""
    cell = 14 if "14" in backbone else 16
    method = parts.method(parts.encoder(backbone, size=(2 * cell, 2 * cell), sincos=True), readout=Fused)
    values = replace(VALUES, decay_tokens=decay_tokens)
    group_of = {id(p): group["weight_decay"] for group in parameter_groups(method, values) for p in group["params"]}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert len(group_of) == len(trained)
    tokens = [name for name in trained if name.rpartition(".")[2] in ("cls_token", "reg_token", "mask_token")]
    assert len(tokens) == 2 + ("reg4" in backbone)
    for name, parameter in trained.items():
        expected = decay_tokens if name in tokens else decayed_by_mae(name, parameter)
        assert group_of[id(parameter)] == (values.weight_decay if expected else 0), name
    frozen = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.vit.pos_embed"]


POSITIONS = {  # backbones, made small, and what says where their tokens are
    "vit_tiny_patch16_224": ({"depth": 2}, ["pos_embed"]),
    "beit_base_patch16_224": (
        {"depth": 2, "embed_dim": 48, "num_heads": 3},
        [f"blocks.{i}.attn.relative_position_bias_table" for i in range(2)],
    ),
    "swin_tiny_patch4_window7_224": (
        {"depths": (1, 1), "num_heads": (3, 6), "window_size": 2},
        [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(2)],
    ),
}


@pytest.mark.parametrize("decay_positions", [True, False])
@pytest.mark.parametrize("backbone", POSITIONS)
def test_whether_positions_are_decayed(backbone, decay_positions):
    """Learned positions and relative position biases are matrices, yet decayed only where asked."""
    sizes, expected = POSITIONS[backbone]
    model = timm.create_model(backbone, img_size=32, num_classes=0, **sizes)
    values = replace(VALUES, decay_positions=decay_positions)
    group_of = {id(p): group["weight_decay"] for group in parameter_groups(model, values) for p in group["params"]}
    positions = [name for name, _ in model.named_parameters() if "pos" in name]
    assert positions == expected
    for name, parameter in model.named_parameters():
        decayed = decay_positions if name in positions else decayed_by_mae(name, parameter)
        assert group_of[id(parameter)] == (values.weight_decay if decayed else 0), name

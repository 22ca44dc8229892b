import pytest

from mimkit.convert.importing.hints import Hints, hints_of
from mimkit.convert.importing.read_file import CheckpointFile


def test_hints_of_huggingface():
    config = {"model_type": "vit_mae", "num_attention_heads": 12, "layer_norm_eps": 1e-12, "image_size": 224}
    hints = hints_of(CheckpointFile({}, config=config | {"mask_ratio": 0.75}))
    assert (hints.heads, hints.image_size, hints.mask_ratio, hints.normalized) == (12, (224, 224), 0.75, False)
    assert hints.norm_eps == 1e-12
    for kind, published in (("vit_mae", 1e-6), ("vit", 1e-6), ("swin", 1e-5)):
        assert hints_of(CheckpointFile({}, config={"model_type": kind, "layer_norm_eps": published})).norm_eps is None
    with pytest.raises(ValueError, match="of a 'dinov2'"):
        hints_of(CheckpointFile({}, config={"model_type": "dinov2"}))
    with pytest.raises(ValueError, match="hidden_act 'relu'"):
        hints_of(CheckpointFile({}, config=config | {"hidden_act": "relu"}))


def test_hints_of_arguments():
    hints = hints_of(CheckpointFile({}, args={"mask_ratio": 0.6, "norm_pix_loss": False, "input_size": 448}))
    assert (hints.mask_ratio, hints.normalized, hints.image_size) == (0.6, False, (448, 448))
    assert hints_of(CheckpointFile({}, args={"mask_ratio": None, "input_size": "large"})) == Hints()
    hints = hints_of(CheckpointFile({}, args={"DATA": {"IMG_SIZE": 192, "MASK_RATIO": 0.6}}))
    assert (hints.image_size, hints.mask_ratio) == ((192, 192), 0.6)

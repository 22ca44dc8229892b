import pytest

from mimkit.convert.importing.hints import Facts, facts_of
from mimkit.convert.importing.read_file import Checkpoint


def test_facts_of_huggingface():
    config = {"model_type": "vit_mae", "num_attention_heads": 12, "layer_norm_eps": 1e-12, "image_size": 224}
    facts = facts_of(Checkpoint({}, config=config | {"mask_ratio": 0.75}))
    assert (facts.heads, facts.image_size, facts.mask_ratio, facts.normalized) == (12, (224, 224), 0.75, False)
    assert facts.norm_eps == 1e-12
    for kind, published in (("vit_mae", 1e-6), ("vit", 1e-6), ("swin", 1e-5)):
        assert facts_of(Checkpoint({}, config={"model_type": kind, "layer_norm_eps": published})).norm_eps is None
    with pytest.raises(ValueError, match="of a 'dinov2'"):
        facts_of(Checkpoint({}, config={"model_type": "dinov2"}))
    with pytest.raises(ValueError, match="hidden_act 'relu'"):
        facts_of(Checkpoint({}, config=config | {"hidden_act": "relu"}))


def test_facts_of_arguments():
    facts = facts_of(Checkpoint({}, args={"mask_ratio": 0.6, "norm_pix_loss": False, "input_size": 448}))
    assert (facts.mask_ratio, facts.normalized, facts.image_size) == (0.6, False, (448, 448))
    assert facts_of(Checkpoint({}, args={"mask_ratio": None, "input_size": "large"})) == Facts()
    facts = facts_of(Checkpoint({}, args={"DATA": {"IMG_SIZE": 192, "MASK_RATIO": 0.6}}))
    assert (facts.image_size, facts.mask_ratio) == ((192, 192), 0.6)

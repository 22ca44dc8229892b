from helpers.parts import shapes
from mimkit.convert.importing import beit
from mimkit.convert.importing.hints import Hints
from mimkit.settings import ImportOptions


def test_published_beit():
    state = shapes("beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    name, size = beit.describe_beit(state, Hints(), ImportOptions())
    assert name.startswith("beit_base_patch16_224(use_abs_pos_emb=False,use_rel_pos_bias=False,use_shared")
    assert size == (224, 224)
    assert len(state["rel_pos_bias.relative_position_bias_table"]) == 732

import pytest

from helpers.parts import shapes
from mimkit.convert.importing import vit
from mimkit.convert.importing.hints import Hints
from mimkit.settings import ImportOptions


@pytest.mark.parametrize("name", list(vit.NAMES))
def test_published_vits_have_plain_names(name):
    assert vit.describe_vit(shapes(name), Hints(), ImportOptions()) == (name, (224, 224))


def test_other_vits_are_named_by_their_differences():
    state = shapes("vit_base_patch16_224", img_size=(96, 64), patch_size=8, embed_dim=128, depth=4, num_heads=4)
    name, size = vit.describe_vit(state, Hints(heads=4, image_size=(96, 64)), ImportOptions())
    assert name == "vit_base_patch16_224(embed_dim=128,depth=4,num_heads=4,patch_size=8)"
    assert size == (96, 64)
    with pytest.raises(ValueError, match="97 rows, which with 1 prefix tokens make no square grid"):
        vit.describe_vit(state, Hints(), ImportOptions())


def test_heads_that_nothing_shows():
    state = shapes("vit_base_patch16_224", embed_dim=48, num_heads=3, depth=1)
    with pytest.raises(ValueError, match="--heads: weights do not show how many heads a width of 48"):
        vit.describe_vit(state, Hints(), ImportOptions())

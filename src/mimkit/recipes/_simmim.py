"""SimMIM: a simple framework for masked image modelling (Xie et al., arXiv 2111.09886)."""

from dataclasses import replace
from functools import partial

from PIL import Image

from mimkit.backbones import create_encoder
from mimkit.decoders import LinearDecoder
from mimkit.losses import absolute
from mimkit.masks import RandomMask
from mimkit.readouts import Last
from mimkit.recipes.recipe import Recipe
from mimkit.targets import Pixels
from mimkit.training.optim import Train
from mimkit.views import RandomResizedCrop

# One table of relative position biases for all blocks, LayerScale, no absolute positions, no bias of the keys.
VIT = (
    "beit_base_patch16_224(use_abs_pos_emb=False, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, "
    "init_values=0.1, drop_path_rate=0.1)"
)


def simmim() -> Recipe:
    """Swin with mask tokens in place of hidden 32-pixel cells, and raw pixels from one linear layer."""
    return Recipe(
        view=RandomResizedCrop(scale=(0.67, 1.0), interpolation=Image.Resampling.BILINEAR),
        mask=RandomMask(ratio=0.6, cell=32),
        encoder=partial(create_encoder, name="swin_base_patch4_window7_224(window_size=6)", kind="dense"),
        readout=Last,
        decoder=LinearDecoder,
        target=Pixels(normalized=False),
        distance=absolute,
        train=Train(
            epochs=100,
            batch_size=2048,
            base_lr=2e-4,
            lr_batch=512,
            warmup_epochs=10,
            warmup_lr=1e-6,
            min_lr=1e-5,
            betas=(0.9, 0.999),
            decay_tokens=False,
            clip_grad=5.0,
        ),
        image_size=(192, 192),
        paper="SimMIM, arXiv 2111.09886",
        published="Swin-B 100 epochs: fine-tuned 82.8 at 192 pixels, 83.5 at 224 (ImageNet-1k top-1)",
        verified="Hugging Face SwinForMaskedImageModeling; the loss pixel by pixel",
    )


def simmim_vit() -> Recipe:
    """The same on ViT-B/16 at 224 pixels, for 800 epochs with a milestone of the learning rate in place of a cosine."""
    base = simmim()
    return replace(
        base,
        encoder=partial(create_encoder, name=VIT, kind="dense"),
        train=replace(base.train, epochs=800, base_lr=1e-4, warmup_lr=5e-7, milestones=(700,)),
        image_size=(224, 224),
        published="ViT-B 800 epochs: fine-tuned 83.8 (ImageNet-1k top-1)",
        verified="attention with the shared bias written out; Hugging Face ViTForMaskedImageModeling",
    )

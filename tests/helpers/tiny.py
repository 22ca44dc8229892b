"""Settings that make each recipe small enough for a test: a backbone that suits it, few pixels, a narrow decoder."""

from typing import Any

NARROW = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
VIT = {"backbone": "test_vit", "image_size": (64, 64)}
SWIN = {
    "backbone": "swin_tiny_patch4_window7_224(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), "
    "window_size=3, drop_path_rate=0.0)",
    "image_size": (96, 96),
}
BEIT = {  # as in SimMIM's recipe
    "backbone": "beit_base_patch16_224(embed_dim=48, depth=6, num_heads=4, use_abs_pos_emb=False, "
    "use_rel_pos_bias=False, use_shared_rel_pos_bias=True, init_values=0.1)",
    "image_size": (64, 64),
}
CONVMAE = {"backbone": "convmae_base(dims=(16, 32, 48), depths=(1, 1, 3), heads=4)", "image_size": (64, 64)}

TINY: dict[str, dict[str, Any]] = {
    "mae": VIT | NARROW,
    "pixmim": VIT | NARROW,
    "mff": VIT | NARROW,
    "pixmim-mff": VIT | NARROW,
    "localmim": VIT | NARROW,
    "localmim-isolated": VIT | NARROW,
    "localmim-large": VIT | NARROW,
    "localmim-swin": SWIN,  # decoders of several widths, and small already
    "localmim-swin-pixel": SWIN | NARROW,
    "localmim-swin-large": SWIN | {"backbone": SWIN["backbone"].replace("window_size=3", "window_size=6")},
    "simmim": SWIN,
    "simmim-vit": BEIT,
    "pixmim-simmim": SWIN,
    "mff-simmim": SWIN,
    "mff-simmim-vit": BEIT,
    "greenmim": SWIN | NARROW,
    "convmae": CONVMAE | NARROW,
    "convmae-fast": CONVMAE | NARROW,
    "pixmim-convmae": CONVMAE | NARROW,
    "lsmae": VIT | NARROW | {"image_size": (128, 128)},
    "pixmim-lsmae": VIT | NARROW | {"image_size": (128, 128)},
    "maskfeat": VIT,
    "um-mae": VIT | NARROW,
    "crossmae": VIT | NARROW,
    "pixio": VIT | NARROW | {"backbone": "test_vit(reg_tokens=7)", "image_size": (128, 128)},
    "small": VIT | NARROW | {"mask_ratio": 0.75},
}

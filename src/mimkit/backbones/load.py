"""Names to encoders."""

import ast
import itertools
import re
from typing import Any, Literal

import timm
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mimkit.backbones.conv import ConvMAE
from mimkit.backbones.dense import DenseEncoder
from mimkit.backbones.init import init_like_mae
from mimkit.backbones.latent import Encoder
from mimkit.backbones.visible import VisibleViT, with_sincos
from mimkit.backbones.visible_swin import VisibleSwin

CONVMAE: dict[str, dict[str, Any]] = {"convmae_base": {}}  # ours; all other names are timm's


def create_encoder(
    name: str,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    kind: Literal["visible", "dense"] | None = None,
    pretrained: bool = False,
    sincos: bool = True,
    norm_eps: float | None = None,
    isolated: bool = False,
    mask_token: bool = False,
    reg_tokens: int | None = None,
    **options: Any,
) -> Encoder:
    """An encoder over a backbone.

    Args:
        name: timm's, such as "vit_base_patch16_224", or "convmae_base"; keyword arguments of the model may follow it
            in brackets: "vit_tiny_patch16_224(depth=6, reg_tokens=7)".
        image_size: (H, W), need not be square nor what the name says.
        channels: image channels.
        kind: "visible" computes on visible tokens only (plain ViTs, Swin, ConvMAE); "dense" has mask tokens where
            pixels are hidden (whatever hands out intermediate features). None takes visible where there is one.
        pretrained: load timm's weights (downloaded on first use), which keeps learned positions.
        sincos: for visible-only ViTs: fixed sine-cosine positions instead of learned ones. The brackets after the
            name may say it too, and go before.
        norm_eps: what LayerNorms of blocks, and the final one, add to the variance; those of stems and mergings keep
            theirs. None leaves it to the model.
        isolated: stop gradients after each tap; for visible-only ViTs and Swin.
        mask_token: be ready for masks that replace tokens; visible-only ViTs then have a mask token, dense encoders
            always do.
        reg_tokens: register tokens of a plain ViT, beside its class token. None leaves them to the model.
        options: further ones of timm's model.

    Raises:
        ValueError: the name is unknown, or the backbone has no encoder of that kind or cannot take that size.
    """
    base, own = parse_name(name)
    sincos = own.pop("sincos", sincos)
    options |= own | ({} if reg_tokens is None else {"reg_tokens": reg_tokens})
    if base in CONVMAE:
        unsupported = {
            "dense form": kind == "dense",
            "weights in timm": pretrained,
            "isolated form": isolated,
            "mask token for masks that replace tokens": mask_token,
        }
        for what, requested in unsupported.items():
            if requested:
                raise ValueError(f"{base} has no {what}")
        encoder = create_convmae(name, CONVMAE[base] | options, image_size=image_size, channels=channels)
        set_norm_eps(encoder, norm_eps, name)
        return encoder
    model = timm_model(base, options, image_size=image_size, channels=channels, pretrained=pretrained)
    set_norm_eps(model, norm_eps, name)
    obstacle = "a dense encoder was asked for"
    if kind != "dense":
        forms = {"sincos": sincos, "isolated": isolated, "mask_token": mask_token}
        visible = create_visible(model, name, image_size=image_size, pretrained=pretrained, **forms)
        if isinstance(visible, Encoder):
            return visible
        obstacle = visible
    if kind == "visible":
        raise ValueError(f"{base} cannot be encoded from visible tokens only: {obstacle}; use --encoder dense")
    if isolated:
        raise ValueError(f"taps can be isolated in encoders of visible tokens only, but for {base}: {obstacle}")
    why = "" if kind == "dense" else obstacle
    return DenseEncoder(model, name=name, image_size=image_size, channels=channels, why=why)


def create_convmae(name: str, options: dict[str, Any], *, image_size: tuple[int, int], channels: int) -> ConvMAE:
    """ConvMAE with these options.

    Raises:
        ValueError: it has no such option, or cannot have it.
    """
    try:
        return ConvMAE(name=name, image_size=image_size, channels=channels, **options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def create_visible(
    model: Any,
    name: str,
    *,
    image_size: tuple[int, int],
    pretrained: bool,
    sincos: bool,
    isolated: bool,
    mask_token: bool,
) -> Encoder | str:
    """The encoder that computes timm's model on visible tokens only, or why there is none."""
    if isinstance(model, SwinTransformer):
        if mask_token:
            return "its visible form has no mask token"
        try:
            return VisibleSwin(model, name=name, image_size=image_size, isolated=isolated)
        except ValueError as error:
            return str(error)
    obstacle = why_no_visible_vit(model)
    if obstacle:
        return obstacle
    if not pretrained:
        init_like_mae(model)
        if sincos:
            with_sincos(model, image_size)
    fixed = sincos and not pretrained
    return VisibleViT(model, name=name, image_size=image_size, sincos=fixed, isolated=isolated, mask_token=mask_token)


def set_norm_eps(model: nn.Module, eps: float | None, name: str) -> None:
    """Change what a model's LayerNorms add to the variance, but for those of its stem and between its stages.

    Raises:
        ValueError: it has no others.
    """
    if eps is None:
        return
    others = re.compile(r"(^|\.)(stem|patch_embed|downsample)")
    norms = [m for path, m in model.named_modules() if isinstance(m, nn.LayerNorm) and not others.search(path)]
    if not norms:
        raise ValueError(f"{name} has no LayerNorm whose epsilon could be {eps:g}")
    for norm in norms:
        norm.eps = eps


def why_no_visible_vit(model: Any) -> str:
    """What keeps a timm model from being driven as a plain ViT over its visible tokens; empty where nothing does."""
    if type(model) is not VisionTransformer:
        return f"it is a {type(model).__name__}, neither a plain ViT nor a Swin"
    if type(model.patch_embed) is not PatchEmbed:  # the kernels of a convolutional stem would see hidden pixels
        return f"it embeds patches with a {type(model.patch_embed).__name__}, which overlaps cells"
    patch = model.patch_embed.patch_size
    if patch[0] != patch[1]:
        return f"its patches have {patch[0]} x {patch[1]} pixels, and cells must be square"
    return ""


def timm_model(
    name: str, options: dict[str, Any], *, image_size: tuple[int, int], channels: int, pretrained: bool
) -> Any:
    """timm's model without head or pooling, for images of this size.

    Raises:
        ValueError: timm does not know the name, or the model does not take such options.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{suggest(name)}")
    fixed = {"pretrained": pretrained, "in_chans": channels, "num_classes": 0}
    reserved = options.keys() & {*fixed, "img_size", "dynamic_img_size", "global_pool"}
    if reserved:
        raise ValueError(f"{name}: {', '.join(sorted(reserved))} is not for brackets; see --image-size and --channels")
    # Convolutional families take no size; only plain ViTs change theirs from call to call. Some must pool.
    sizes: list[dict[str, Any]] = [{"img_size": image_size, "dynamic_img_size": True}, {"img_size": image_size}, {}]
    problem: Exception | None = None
    for pool, size in itertools.product(("", "avg"), sizes):
        try:
            return timm.create_model(name, **fixed, **options, **size, global_pool=pool)
        except (TypeError, AssertionError) as error:
            problem = problem if isinstance(problem, AssertionError) else error
        except RuntimeError as error:  # an unknown tag of weights
            raise ValueError(f"timm cannot make {name!r}: {' '.join(str(error).split())}") from error
    raise ValueError(f"timm cannot make {name!r} without its head: {problem}") from problem


def parse_name(text: str) -> tuple[str, dict[str, Any]]:
    """ "name(key=value, ...)" as name and keyword arguments; brackets may be left out.

    All arguments are timm's, but for `sincos`, which is `create_encoder`'s.

    Raises:
        ValueError: it is written in another way.
    """
    if "(" not in text:
        return text, {}
    name, _, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("something else")
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(values) < len(call.keywords):
            raise ValueError("a key twice, or **")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} is not of the form NAME(KEY=VALUE, ...) with plain values") from error
    return name.strip(), values


def suggest(name: str) -> str:
    """The end of a sentence about a misspelt timm name: "; did you mean A or B?", or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, [*timm.list_models(), *CONVMAE], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""

"""How published methods initialise transformer weights."""

from torch import nn


def init_like_mae(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear layers with zero bias, patch embedding as the matrix it is,
    tokens N(0, 0.02), norms at identity.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(child.weight.flatten(1))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "reg_token", "mask_token"):
            nn.init.normal_(parameter, std=0.02)

"""Which visible tokens of a Swin stage attend to each other: windows of uneven sizes packed into groups of one size.

A window has at most g = its area visible tokens. Tokens sorted by window are cut into chunks of g; a window that lies
inside one chunk attends there. No window can cross more than one cut, so one further group for each cut, starting
where the window that crosses it starts, holds that window whole. Every visible token so has one group in which its
whole window is; shapes depend on how many tokens are visible only, never on which.

Shapes: b batch, or 1 where all samples hide the same; K visible tokens, S slots of groups, G groups, g slots of a
group, h w cells of the stage.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.grids import Grid


@dataclass(frozen=True, eq=False)
class WindowGroups:
    """Groups of tokens for masked attention.

    Args:
        slots: int64 [b·S], the token that each slot reads, counted through all b·K; None where each sample is one
            group of its tokens as they stand, so that nothing moves.
        places: int64 [b·K], the slot in which each token has its whole window; None with `slots`.
        inside: int64 [b·G, g], where in its window each slot's token lies, in raster order.
        keys: int64 [b·G, g, g], for each query (second) and key (last) where in the window the key lies; the window's
            area where it is in another one.
        samples: b.
    """

    slots: Tensor | None
    places: Tensor | None
    inside: Tensor
    keys: Tensor
    samples: int


def group_windows(ids: Tensor, grid: Grid, window: Grid, shift: Grid) -> WindowGroups:
    """The groups of a stage for blocks of one window size and shift, planned on the device without waiting for it.

    Args:
        ids: int64 [b, K], raster positions on the grid, in any order.
        grid: (h, w) of the stage; windows divide it.
        window: (height, width) of a window in tokens.
        shift: by how many tokens windows are moved down and right. Those that reach over the edge are cut there,
            which is what Swin's cyclic shift with its mask computes.
    """
    samples, count = ids.shape
    size = window[0] * window[1]
    rows, columns = ids // grid[1] - shift[0], ids % grid[1] - shift[1]
    inside = rows % window[0] * window[1] + columns % window[1]
    # Windows that start before the edge have index -1; -1 of all is kept for padding.
    windows = (rows // window[0] + 1) * (grid[1] // window[1] + 1) + columns // window[1] + 1
    if count <= 2 * size:
        return WindowGroups(None, None, inside, keys_of(windows, inside, size), samples)

    chunks = -(-count // size)
    windows, order = windows.sort(dim=1, stable=True)
    start = torch.searchsorted(windows, windows)  # of each token's window
    here = torch.arange(count, device=ids.device)
    cuts = here[size::size]
    positions = torch.arange(chunks * size, device=ids.device).expand(samples, -1)
    across = start[:, cuts, None] + here[:size]
    positions = torch.cat([positions, across.flatten(1)], dim=1)

    cut = start // size + 1  # the one after the start of each token's window
    beyond = windows.gather(1, (cut * size).clamp(max=count - 1))
    crosses = (cut < chunks) & (beyond == windows)
    places = torch.where(crosses, (chunks + cut - 1) * size + here - start, here)
    places = torch.empty_like(places).scatter_(1, order, places)

    padding = (0, chunks * size - count)
    slots = F.pad(order, padding).gather(1, positions)
    windows = F.pad(windows, padding, value=-1).gather(1, positions).view(-1, size)
    inside = inside.gather(1, slots).view(-1, size)
    sample = torch.arange(samples, device=ids.device)[:, None]
    return WindowGroups(
        slots=(slots + sample * count).flatten(),
        places=(places + sample * slots.shape[1]).flatten(),
        inside=inside,
        keys=keys_of(windows, inside, size),
        samples=samples,
    )


def keys_of(windows: Tensor, inside: Tensor, size: int) -> Tensor:
    """`WindowGroups.keys` from each slot's window and place in it, [G, g] each, for windows of that area."""
    return torch.where(windows[:, :, None] == windows[:, None, :], inside[:, None, :], size)

"""Token orders: how one head's visual tokens are laid out in memory.

An order is a name that is valid on any grid. An axis order such as "HWF" lists the axes from the
slowest to the fastest. A tile order such as "8x2x4" (frames x height x width) cuts the grid in 3-D
tiles, laid row-major, with the tokens row-major inside; tiles at the far edges are cut, so that
every order is a bijection on every grid.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from .token_grid import TokenGrid

AXIS_ORDERS = ("FHW", "FWH", "HFW", "HWF", "WFH", "WHF")
ORDER_KINDS = ("fhw", "axes", "tiles")
MAX_CANDIDATES = 18
# Stripes of 8 rows laid column by column ("1x8x1"), stripes of 8 columns laid row by row
# ("1x128x8"), and so on. On a grid that tiles of 8x8 fill, blocks of 64 are the same patches; on
# others every stripe of tiles ends with a cut one, after which blocks lie across two tiles. With
# attention that falls off over 6 tokens, the best tenth of the blocks of a 48x84 image holds 85 %
# of the mass in stripes and 80 % in tiles.
IMAGE_STRIPES = ("1x8x1", "1x128x8", "1x16x1", "1x128x4", "1x4x1", "1x128x16")
_TILE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})")


def tile_shape(order: str) -> tuple[int, int, int] | None:
    """(frames, height, width) of a tile order's tile, None for an axis order.

    Raises:
        ValueError: the name is neither.
    """
    if order in AXIS_ORDERS:
        return None
    match = _TILE.fullmatch(order)
    if match is None:
        raise ValueError(
            f"order must be one of {', '.join(AXIS_ORDERS)} or a tile such as 8x2x4, got {order!r}"
        )
    frames, height, width = (int(part) for part in match.groups())
    return frames, height, width


def grid_permutation(order: str, grid: TokenGrid) -> Tensor:
    """Gather indices of an order: `x_perm = x[..., perm, :]`.

    Returns:
        int64 [grid.tokens] on the CPU, a bijection.
    """
    tile = tile_shape(order)
    flat = torch.arange(grid.tokens).view(grid.shape)
    if tile is None:
        return flat.permute(["FHW".index(axis) for axis in order]).reshape(-1)
    size = [min(side, extent) for side, extent in zip(tile, grid.shape, strict=True)]
    counts = [-(-extent // side) for extent, side in zip(grid.shape, size, strict=True)]
    outer = torch.zeros(grid.shape, dtype=torch.int64)
    inner = torch.zeros(grid.shape, dtype=torch.int64)
    for axis in range(3):
        position = torch.arange(grid.shape[axis])
        position = position.view([-1 if axis == other else 1 for other in range(3)])
        outer = outer * counts[axis] + position // size[axis]
        inner = inner * size[axis] + position % size[axis]
    return torch.argsort((outer * math.prod(size) + inner).reshape(-1))


def inverse_permutation(permutation: Tensor) -> Tensor:
    """The permutation that undoes another: `x_perm[..., inverse, :] == x`."""
    inverse = torch.empty_like(permutation)
    positions = torch.arange(
        permutation.numel(), dtype=permutation.dtype, device=permutation.device
    )
    inverse[permutation.long()] = positions
    return inverse


def sequence_permutation(
    order: str, grid: TokenGrid, dense_first: int = 0, dense_last: int = 0
) -> Tensor:
    """Gather indices of a whole sequence: grid tokens in the given order, then all extra tokens.

    Text and other extra tokens are not reordered among themselves; they are moved behind the grid
    so that the blocks of the grid start at position 0 whatever their number.

    Args:
        order: name of the order.
        grid: the grid, whose tokens start at position `dense_first` of the sequence.
        dense_first: extra tokens before the grid.
        dense_last: extra tokens behind the grid.

    Returns:
        int64 [dense_first + grid.tokens + dense_last] on the CPU.
    """
    return with_extra_tokens(grid_permutation(order, grid), dense_first, dense_last)


def with_extra_tokens(permutation: Tensor, first: int, last: int) -> Tensor:
    """Permutations of a grid made those of a whole sequence, on their device and in their dtype.

    Args:
        permutation: integer [..., V] gather indices of the grid.
        first: extra tokens before the grid.
        last: extra tokens behind it.

    Returns:
        [..., V + first + last]: grid tokens, then leading extra tokens, then trailing ones.
    """
    behind = first + permutation.shape[-1]
    options = {"dtype": permutation.dtype, "device": permutation.device}
    leading = torch.arange(first, **options)
    trailing = torch.arange(behind, behind + last, **options)
    extra = torch.cat([leading, trailing]).expand(*permutation.shape[:-1], -1)
    return torch.cat([permutation + first, extra], -1)


def candidate_orders(grid: TokenGrid, block: tuple[int, int], kind: str) -> tuple[str, ...]:
    """The orders among which calibration chooses.

    Of orders that cut the grid in the same blocks only the first is kept: all have the same masks.

    Args:
        grid: the token grid.
        block: (query, key) tokens of a block; tiles hold as many tokens as either.
        kind: "fhw" (the model's own order only), "axes" (the six axis orders) or "tiles" (axes,
            tiles matched to the block and, for images, stripes; at most MAX_CANDIDATES in all).
    """
    if kind not in ORDER_KINDS:
        raise ValueError(f"orders must be one of {', '.join(ORDER_KINDS)}, got {kind!r}")
    names: list[str] = ["FHW"] if kind == "fhw" else [*AXIS_ORDERS]
    if kind == "tiles" and grid.frames == 1:
        names += IMAGE_STRIPES  # first: where a tile cuts the same blocks, stripes transfer better
    if kind == "tiles":
        names += _matched_tiles(grid, block)
    kept: dict[bytes, str] = {}
    for name in names:
        if len(kept) == MAX_CANDIDATES:
            break
        permutation = grid_permutation(name, grid)
        parts = [_partition(permutation, side) for side in sorted(set(block))]
        kept.setdefault(torch.cat(parts).numpy().tobytes(), name)
    return tuple(kept.values())


def _partition(permutation: Tensor, block: int) -> Tensor:
    """int64 [S]: the least token of the block in which each token lies, however blocks are laid."""
    padded = torch.nn.functional.pad(
        permutation, (0, -len(permutation) % block), value=len(permutation)
    )
    least = padded.view(-1, block).amin(1).repeat_interleave(block)[: len(permutation)]
    return torch.empty_like(permutation).scatter_(0, permutation, least)


def _matched_tiles(grid: TokenGrid, block: tuple[int, int]) -> list[str]:
    """Tile names in order of promise, alternating between the two block sizes.

    All-frames x small-patch tiles come first (chosen by most heads of the models measured), then
    cubes, then the other splits between time and space.
    """
    lists = [_tiles_of(grid, tokens) for tokens in dict.fromkeys(block)]
    longest = max(len(tiles) for tiles in lists)
    return [
        "x".join(map(str, tiles[rank]))
        for rank in range(longest)
        for tiles in lists
        if rank < len(tiles)
    ]


def _tiles_of(grid: TokenGrid, tokens: int) -> list[tuple[int, int, int]]:
    """Tiles of about `tokens` tokens that fit the grid, most promising first."""
    depths = [2**power for power in range(int(math.log2(tokens)) + 1) if 2**power <= grid.frames]
    whole = min(grid.frames, tokens)
    cube = min(depths, key=lambda depth: abs(math.log2(depth) - math.log2(tokens) / 3))
    ranked = sorted(depths, key=lambda depth: abs(math.log2(depth) - math.log2(cube)))
    tiles = [
        tile
        for depth in dict.fromkeys([whole, depths[-1], *ranked])
        for tile in _patches(grid, depth, tokens / depth)
    ]
    return list(dict.fromkeys(tiles))


def _patches(grid: TokenGrid, depth: int, area: float) -> list[tuple[int, int, int]]:
    """Patches of about `area` tokens, squarest first, both ways round; longer ones for images."""
    side = math.sqrt(max(area, 1.0))
    if math.log2(max(area, 1.0)).is_integer():
        shorts = {2 ** int(math.log2(side))}
        if grid.frames == 1:
            shorts.add(max(1, min(shorts) // 2))
    else:
        shorts = {math.floor(side), math.ceil(side)}
    shapes: set[tuple[int, int]] = set()
    for short in shorts:
        long = max(1, round(area / short))
        shapes |= {(short, long), (long, short)}
    ranked = sorted(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1])), shape))
    return [(depth, h, w) for h, w in ranked if h <= grid.height and w <= grid.width]

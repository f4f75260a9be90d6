"""Output errors of many maps at once, where the kernels run; a map is one head in one order.

The same numbers as `order_scores` gives head by head, from two passes over the keys: one over all
of them gives block mass and the dense output of the sampled rows, one over the kept blocks their
part of the output. No map has keys of its own, so that some hundred maps are handled by one launch
each of a dozen kernels, and the host keeps up with the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import unavailable_reason
from ..kernels.sampled_rows_api import ExtraRows, SampledMaps, keep_greatest
from .block_layout import block_count, diagonal
from .device_copy import to_device
from .extra_keys import RecordedCall
from .order_scores import SCORE_COLUMNS
from .profile_geometry import GeometryStack, ProfileGeometry
from .row_sample import RowSample
from .tail_bias import TAIL_BIASES

# Notes and outputs of the maps that are handled together.
GROUP_BYTES = 240 << 20
_REFINEMENTS = 1


@dataclass(frozen=True, slots=True)
class MapErrors:
    """Errors of N maps.

    Attributes:
        errors: float32 [N, densities, len(TAIL_BIASES)] squared error of the output.
        energy: float32 [N] of the dense output.
        retained: float32 [N, densities] block mass that the mask keeps.
    """

    errors: Tensor
    energy: Tensor
    retained: Tensor

    def curves(self) -> Tensor:
        """float32 [N, densities, len(TAIL_BIASES) + 1] as `error_curves` gives them."""
        energy = self.energy[:, None, None].expand(-1, self.errors.shape[1], 1)
        return torch.cat([self.errors, energy], 2)

    def score_rows(self) -> Tensor:
        """float32 [N, SCORE_COLUMNS] as `order_scores` gives them, at the first density."""
        rows = self.energy.new_zeros(len(self.energy), SCORE_COLUMNS)
        rows[:, : len(TAIL_BIASES)] = self.errors[:, 0]
        rows[:, len(TAIL_BIASES)] = self.energy
        rows[:, len(TAIL_BIASES) + 1] = self.retained[:, 0]
        rows[:, -1] = 1
        return rows


class _Fixed(NamedTuple):
    """What all maps of one length share."""

    sample: RowSample
    positions: Tensor  # int32 [n * r]
    row_weight: Tensor  # float32 [n], share of each query block's rows in all rows
    forced: Tensor  # int8 [n, KVb], blocks that every mask keeps
    tail_weights: Tensor  # float32 [len(TAIL_BIASES)]

    @property
    def rows(self) -> int:
        return len(self.positions)


@lru_cache(maxsize=4)
def _fixed(tokens: int, block: tuple[int, int], device: torch.device) -> _Fixed:
    sample = RowSample.of(tokens, block[0], device)
    query_blocks, key_blocks = (block_count(tokens, side) for side in block)
    forced = diagonal(query_blocks, key_blocks, block).to(device)[sample.blocks].to(torch.int8)
    of_block = sample.valid.sum(1)
    weights = torch.tensor(TAIL_BIASES, device=device).exp()
    positions = sample.positions.view(-1).int()
    return _Fixed(sample, positions, of_block / of_block.sum(), forced.contiguous(), weights)


def maps_are_served(q: Tensor) -> bool:
    """Whether `map_errors` is to be used for q. The interpreter serves tests alone."""
    return q.device.type == "cuda" and unavailable_reason(q.device, q.dtype, q.shape[-1]) is None


def scores_of_heads(
    call: RecordedCall,
    permutations: Tensor,
    geometry: Callable[[int], ProfileGeometry],
    block: tuple[int, int],
    density: float,
    scale: float,
) -> Tensor:
    """Scores of all heads in all candidate orders, summed over the batch; see `map_errors`.

    Returns:
        float32 [H, O, SCORE_COLUMNS] on the device of the call.
    """
    heads, orders = call.q.shape[1], len(permutations)
    maps = [(head, order) for order in range(orders) for head in range(heads)]
    rows = torch.stack(
        [
            map_errors(
                call, entry, maps, permutations, geometry, block, (density,), scale
            ).score_rows()
            for entry in range(call.q.shape[0])
        ]
    )
    return rows.sum(0).unflatten(0, (orders, heads)).transpose(0, 1)


def map_errors(
    call: RecordedCall,
    entry: int,
    maps: Sequence[tuple[int, int]],
    permutations: Tensor,
    geometry: Callable[[int], ProfileGeometry],
    block: tuple[int, int],
    densities: Sequence[float],
    scale: float,
) -> MapErrors:
    """Output errors of some maps of one batch entry.

    Args:
        call: the recorded call.
        entry: batch entry.
        maps: (head, order) of each map; the maps of a head share its keys in the cache.
        permutations: int32 [O, V] on the device of the call.
        geometry: the profile geometry of an order for its sampled query blocks.
        block: (query, key) tokens of a block.
        densities: computed / all blocks among the sampled rows.
        scale: softmax scale.
    """
    device = call.q.device
    fixed = _fixed(call.q.shape[2], block, device)
    extra = call.extra_of_heads(entry)
    stack = GeometryStack([geometry(order) for order in range(len(permutations))])
    counts = [round(density * fixed.forced.numel()) for density in densities]
    wanted = to_device(torch.tensor(counts, dtype=torch.int32), device)
    # Side by side, the maps of a head find its keys in the cache.
    places = sorted(range(len(maps)), key=lambda n: maps[n])
    index = to_device(torch.tensor([maps[n] for n in places], dtype=torch.int32), device)
    of_map = _bytes_of_map(call, fixed, block, stack.bins, extra, len(counts))
    groups = -(-len(maps) // max(1, GROUP_BYTES // of_map))
    at_once = -(-len(maps) // groups)
    parts = []
    for heads_and_orders in index.split(at_once):
        heads, orders = (x.contiguous() for x in heads_and_orders.unbind(1))
        sampled = SampledMaps(
            call.q[entry], call.k[entry], call.v[entry], permutations, heads, orders,
            fixed.positions, fixed.sample.valid, block, scale,
        )  # fmt: skip
        score = stack.scores(sampled.mass, orders, fixed.forced, _REFINEMENTS)
        kept, retained = keep_greatest(score, sampled.mass, fixed.row_weight, wanted)
        more = None if extra is None else _extra_rows(sampled, heads, *extra, scale)
        found = [sampled.errors(mask, fixed.tail_weights, more) for mask in kept]
        parts.append((torch.stack([error for error, _ in found], 1), found[0][1], retained))
    back = [0] * len(places)
    for position, place in enumerate(places):
        back[place] = position
    order = to_device(torch.tensor(back), device)
    return MapErrors(*(torch.cat(columns)[order] for columns in zip(*parts, strict=True)))


def _bytes_of_map(
    call: RecordedCall,
    fixed: _Fixed,
    block: tuple[int, int],
    bins: int,
    extra: tuple[Tensor, Tensor, Tensor | None] | None,
    densities: int,
) -> int:
    tokens, head_dim = call.q.shape[2:]
    width = max(64, 1 << (head_dim - 1).bit_length())
    key_blocks = block_count(tokens, block[1])
    notes = 8 * fixed.rows * key_blocks
    outputs = 32 * fixed.rows * width + 4 * key_blocks * width
    masses = (16 + densities) * len(fixed.forced) * key_blocks + 24 * bins
    if extra is not None:
        # Logits of the extra keys, and queries, keys and values of each map.
        keys = extra[0].shape[1]
        outputs += 8 * fixed.rows * (keys + 2 * width) + 12 * keys * width
    return notes + outputs + masses


def _extra_rows(
    sampled: SampledMaps,
    heads: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
) -> ExtraRows:
    """What the extra keys, [H, E, D], add relative to each row's log-sum-exp over the grid."""
    index = heads.long()
    logits = sampled.queries.float() @ keys[index].float().mT * scale
    if bias is not None:
        logits += bias
    grid = (sampled.dense.logsumexp * math.log(2))[..., None]
    most = torch.maximum(grid, logits.amax(2, keepdim=True))
    p = logits.sub_(most).exp_()
    weighted = torch.zeros_like(sampled.dense.output)
    weighted[..., : values.shape[2]] = p @ values[index].float()
    return ExtraRows(weighted, p.sum(2), (grid - most).exp()[..., 0].contiguous())

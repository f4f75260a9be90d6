"""Output errors of many maps at once, where the kernels run; a map is one head in one order.

The same numbers as `order_scores` gives head by head, from two passes over the keys: one over all
of them gives block mass and the dense output of the sampled rows, one over the kept blocks their
part of the output. Between the two only small tensors are handled, those of all maps together, so
that the host keeps up with the GPU.
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
from ..kernels.sampled_rows_api import MapRows, map_rows
from .block_layout import block_count, diagonal, valid_tokens
from .extra_keys import ExtraPart, RecordedCall
from .metrics import ranking_score
from .order_scores import SCORE_COLUMNS
from .profile_geometry import ProfileGeometry
from .row_sample import RowSample
from .tail_bias import TAIL_BIASES

# Keys, values and sums of the maps that are handled together.
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
    forced: Tensor  # bool [n, KVb], blocks that every mask keeps
    sizes: Tensor  # float32 [KVb], tokens of each key block
    tail_weights: Tensor  # float32 [len(TAIL_BIASES)]
    scale: float

    @property
    def rows(self) -> int:
        return self.sample.positions.numel()


@lru_cache(maxsize=4)
def _fixed(tokens: int, block: tuple[int, int], device: torch.device, scale: float) -> _Fixed:
    sample = RowSample.of(tokens, block[0], device)
    sizes = valid_tokens(tokens, block[1], device)
    forced = diagonal(block_count(tokens, block[0]), len(sizes), block).to(device)
    weights = torch.tensor(TAIL_BIASES, device=device).exp()
    return _Fixed(sample, forced[sample.blocks], sizes, weights, scale)


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
        maps: (head, order) of each map; best with the maps of an order side by side.
        permutations: int32 [O, V] on the device of the call.
        geometry: the profile geometry of an order for its sampled query blocks.
        block: (query, key) tokens of a block.
        densities: computed / all blocks among the sampled rows.
        scale: softmax scale.
    """
    fixed = _fixed(call.q.shape[2], block, call.q.device, scale)
    at_once = max(1, GROUP_BYTES // _bytes_of_map(call, fixed))
    parts = [
        _Group(call, entry, maps[start : start + at_once], permutations, block, fixed).errors(
            geometry, densities
        )
        for start in range(0, len(maps), at_once)
    ]
    return MapErrors(
        torch.cat([part.errors for part in parts]),
        torch.cat([part.energy for part in parts]),
        torch.cat([part.retained for part in parts]),
    )


def _bytes_of_map(call: RecordedCall, fixed: _Fixed) -> int:
    tokens, head_dim = call.q.shape[2:]
    width = max(64, 1 << (head_dim - 1).bit_length())
    keys = 2 * tokens * width * call.q.element_size()
    # Block sums and tail weights with their temporaries; outputs of the two passes with theirs.
    return keys + fixed.rows * (len(fixed.sizes) * 24 + width * 80)


class _Group:
    """Maps that are handled together. R rows of a map: r of each of n query blocks."""

    def __init__(
        self,
        call: RecordedCall,
        entry: int,
        maps: Sequence[tuple[int, int]],
        permutations: Tensor,
        block: tuple[int, int],
        fixed: _Fixed,
    ) -> None:
        self.fixed, self.sample = fixed, fixed.sample
        self.orders = [order for _, order in maps]
        index = torch.tensor(maps, dtype=torch.int32).to(call.q.device)
        heads, orders = index[:, 0].contiguous(), index[:, 1].contiguous()
        self.rows: MapRows = map_rows(
            call.q[entry],
            call.k[entry],
            call.v[entry],
            permutations,
            heads,
            orders,
            self.sample.positions,
            block,
            fixed.scale,
        )
        self.whole = self.rows.attend()
        self.extra = self._extra(call, entry, heads)
        self.reference = self.whole.output
        if self.extra is not None:
            output = self.reference * self.extra.shrink + self.extra.weighted
            self.reference = output / (self.extra.shrink + self.extra.total)

    def errors(
        self, geometry: Callable[[int], ProfileGeometry], densities: Sequence[float]
    ) -> MapErrors:
        valid = self.sample.valid  # [n, r]
        of_block = valid.sum(1)
        rows_mass = self.rows.block_probabilities(self.whole)  # [N, KVb, R]
        mass = (rows_mass.unflatten(2, valid.shape) * valid).sum(3) / of_block
        mass = mass.transpose(1, 2).contiguous()  # [N, n, KVb]
        ranks = self._ranks(mass, geometry)
        tail = self._tail()  # [N, n, r, KVb]
        errors, retained = [], []
        for density in densities:
            kept = ranks < round(density * mass[0].numel())
            kept |= ranks < 0
            errors.append(self._errors(kept, tail))
            retained.append(((mass * kept).sum(2) * of_block).sum(1) / of_block.sum())
        energy = (self.reference.square().sum(2) * valid.view(-1)).sum(1)
        return MapErrors(torch.stack(errors, 1), energy, torch.stack(retained, 1))

    def _extra(self, call: RecordedCall, entry: int, heads: Tensor) -> ExtraPart | None:
        """What the extra keys add, relative to each row's log-sum-exp over the grid."""
        extra = call.extra_of_heads(entry)
        if extra is None:
            return None
        keys, values, bias = extra
        index = heads.long()
        logits = self.rows.queries.float() @ keys[index].float().mT * self.fixed.scale
        if bias is not None:
            logits += bias
        grid = (self.whole.logsumexp * math.log(2))[..., None]
        most = torch.maximum(grid, logits.amax(2, keepdim=True))
        p = logits.sub_(most).exp_()
        weighted = p @ values[index].float()
        return ExtraPart(weighted, p.sum(2, keepdim=True), (grid - most).exp())

    def _ranks(self, mass: Tensor, geometry: Callable[[int], ProfileGeometry]) -> Tensor:
        """int64 [N, n, KVb] rank of each block by the profile's prediction; kept always: -1."""
        ranking = torch.empty_like(mass)
        for order in dict.fromkeys(self.orders):
            of_order = [n for n, other in enumerate(self.orders) if other == order]
            part = slice(of_order[0], of_order[-1] + 1)
            if len(of_order) != part.stop - part.start:
                raise ValueError("maps of an order must lie side by side")
            profile = geometry(order)
            ranking[part] = profile.evaluate(profile.fit(mass[part], _REFINEMENTS))
        score = ranking_score(ranking, self.fixed.forced).flatten(1)
        order = score.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(score.shape[1], device=mass.device).expand_as(order)
        ranks = torch.empty_like(order).scatter_(1, order, place)
        return ranks.masked_fill_(score.isinf(), -1).view_as(mass)

    def _tail(self) -> Tensor:
        """[N, n, r, KVb] weight of every block's pooled key, the grid's sum being 1."""
        logits = self.rows.queries.float() @ self.rows.pooled_keys.mT
        logits = logits.mul_(self.fixed.scale / math.log(2)).sub_(self.whole.logsumexp[..., None])
        return logits.exp2_().mul_(self.fixed.sizes).unflatten(1, self.sample.valid.shape)

    def _errors(self, kept: Tensor, tail: Tensor) -> Tensor:
        """float32 [N, len(TAIL_BIASES)] from the blocks that are kept, [N, n, KVb]."""
        part = self.rows.attend(kept)
        exact_total = (part.logsumexp - self.whole.logsumexp).exp2()[..., None]
        exact = part.output * exact_total
        skipped = (tail * ~kept[:, :, None]).flatten(1, 2)
        tail_total = skipped.sum(2, keepdim=True)
        tail_part = skipped @ self.rows.pooled_values
        if self.extra is not None:
            exact = exact * self.extra.shrink + self.extra.weighted
            exact_total = exact_total * self.extra.shrink + self.extra.total
            tail_part, tail_total = tail_part * self.extra.shrink, tail_total * self.extra.shrink
        # Output minus reference is ((exact - total * ref) + w * (the tail's alike)) / all weights.
        off = exact.addcmul_(exact_total, self.reference, value=-1)
        off_tail = tail_part.addcmul_(tail_total, self.reference, value=-1)
        squares = [(a * b).sum(2)[..., None] for a, b in _pairs(off, off_tail)]
        weight = self.fixed.tail_weights
        error = squares[0] + 2 * weight * squares[1] + weight.square() * squares[2]
        error /= (exact_total + weight * tail_total).square()
        return (error * self.sample.valid.view(-1, 1)).sum(1)


def _pairs(a: Tensor, b: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return ((a, a), (a, b), (b, b))

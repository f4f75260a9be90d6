"""Which token order and which tail bias each head gets, from the summed scores of its maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .order_scores import ENERGY, ERRORS, INCOHERENCE, MAPS, RETAINED, SCORE_COLUMNS, SPARSE
from .paper_metric import paper_score
from .tail_bias import TAIL_BIASES

CHOICES = ("output_error", "block_mass", "paper_metric")
# Errors this close are decided by retained mass. Measured on the demo model, choosing on one prompt
# and testing on another: error -0.5 %, recall +0.4 points; 10 % and more cost error.
TIE = 1.05


class OrderChoice(NamedTuple):
    """The choice of every head.

    Attributes:
        order: int64 [L, H] index into the candidates.
        tail_bias: float32 [L, H].
        error: float32 [L, H, O] relative output error of each candidate at its best bias.
    """

    order: Tensor
    tail_bias: Tensor
    error: Tensor


def choose_orders(scores: Tensor, choice: str, alpha: float) -> OrderChoice:
    """The best candidate of every head.

    Args:
        scores: [L, H, O, SCORE_COLUMNS], summed over the maps of the choosing prompt.
        choice: "output_error" (least error of the attention output with the pooled tail; among
            nearly equal ones the most mass), "block_mass" (most mass kept at the target density) or
            "paper_metric".
        alpha: the paper metric's weight of M_sparse against M_quant.

    Raises:
        ValueError: an unknown choice, or a head of which no map was recorded.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
    maps = scores[..., MAPS]
    if bool((maps == 0).any()):
        missing = (maps == 0).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"every layer must be recorded before orders are chosen, got no maps of {missing}"
        )
    by_bias = scores[..., ERRORS] / scores[..., ENERGY, None].clamp_min(1e-30)
    error = by_bias.amin(-1).sqrt()
    if choice == "output_error":
        close = error <= error.amin(-1, keepdim=True) * TIE
        order = scores[..., RETAINED].masked_fill(~close, -1.0).argmax(-1)
    elif choice == "block_mass":
        order = scores[..., RETAINED].argmax(-1)
    else:
        sparse, incoherence = scores[..., SPARSE] / maps, scores[..., INCOHERENCE] / maps
        order = paper_score(sparse, incoherence, alpha).argmin(-1)
    index = order[..., None, None].expand(*order.shape, 1, by_bias.shape[-1])
    bias = by_bias.gather(-2, index).squeeze(-2).argmin(-1)
    return OrderChoice(order, torch.tensor(TAIL_BIASES)[bias], error.float())


class OrderContest:
    """Sums the scores of all candidates over maps, then decides for each kind of orders.

    Attributes:
        candidates: names of the candidates of each kind.
        names: all candidates, in the order of the scores' rows.
        choices: the choice among each kind's candidates, once decided.
        chosen: [L][H] distinct names of the chosen orders, over all kinds, once decided.
    """

    def __init__(self, candidates: Mapping[str, tuple[str, ...]], layers: int, heads: int) -> None:
        self.candidates = dict(candidates)
        self.names = tuple(dict.fromkeys(name for names in candidates.values() for name in names))
        self.choices: dict[str, OrderChoice] = {}
        self.chosen: list[list[list[str]]] = []
        if len(self.names) == 1:
            self.chosen = [[[self.names[0]]] * heads] * layers
        self._scores = torch.zeros(
            layers, heads, len(self.names), SCORE_COLUMNS, dtype=torch.float64
        )

    def add(self, layer: int, scores: Tensor) -> None:
        """Adds [H, len(names), SCORE_COLUMNS], summed over maps, on any device."""
        self._scores[layer] += scores.cpu().double()

    def decide(self, choice: str, alpha: float) -> None:
        """Fixes `choices` and `chosen`; see `choose_orders`."""
        for kind, names in self.candidates.items():
            columns = [self.names.index(name) for name in names]
            self.choices[kind] = choose_orders(self._scores[:, :, columns], choice, alpha)
        picked = [
            [[names[index] for index in row] for row in self.choices[kind].order.tolist()]
            for kind, names in self.candidates.items()
        ]
        self.chosen = [
            [list(dict.fromkeys(of_head)) for of_head in zip(*rows, strict=True)]
            for rows in zip(*picked, strict=True)
        ]

    @property
    def scores(self) -> Tensor:
        """float64 [L, H, len(names), SCORE_COLUMNS], summed over the maps so far."""
        return self._scores

    def restore(self, scores: Tensor) -> None:
        """Takes over the sums of an earlier contest among the same candidates.

        Raises:
            ValueError: another shape or dtype.
        """
        if scores.dtype != self._scores.dtype or scores.shape != self._scores.shape:
            raise ValueError(
                f"scores must be float64 {list(self._scores.shape)}, got {scores.dtype} "
                f"{list(scores.shape)}"
            )
        self._scores = scores

"""What one recorded attention call tells: scores of candidate orders, block mass, output errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .block_mass import block_mass
from .extra_keys import RecordedCall
from .grid_orders import GridOrders
from .order_scores import ERROR_DENSITIES, error_curves, order_scores
from .sampled_maps import map_errors, maps_are_served, scores_of_heads


class CallMeasures:
    """Measures calls on one grid: all heads together where the kernels run, else one by one."""

    def __init__(self, orders: GridOrders, block: tuple[int, int], density: float) -> None:
        """Prepares the measures.

        Args:
            orders: permutations and profile geometries of the grid's orders.
            block: (query, key) tokens of a block.
            density: computed / all blocks at which orders are compared.
        """
        self._orders, self._block, self._density = orders, block, density

    def scores(self, call: RecordedCall, names: Sequence[str], *, paper_metric: bool) -> Tensor:
        """Scores of candidate orders, summed over the batch.

        Args:
            call: the recorded call.
            names: the candidates.
            paper_metric: whether the paper's metric is wanted beside the output errors.

        Returns:
            float32 [H, len(names), SCORE_COLUMNS].
        """
        orders, device, scale = self._orders, call.q.device, call.q.shape[-1] ** -0.5
        permutations = [orders.permutation(name, device) for name in names]
        profiles = [orders.geometry(name, device, sampled=True) for name in names]
        if not paper_metric and maps_are_served(call.q):
            stacked = torch.stack(permutations).int()
            return scores_of_heads(
                call, stacked, profiles.__getitem__, self._block, self._density, scale
            )
        rows = []
        for head in range(call.q.shape[1]):
            scores = [
                order_scores(
                    *call.inputs_of(entry, head),
                    permutations,
                    self._block,
                    self._density,
                    scale,
                    with_paper_metric=paper_metric,
                    profiles=profiles,
                    extra=call.extra(entry, head),
                )
                for entry in range(call.q.shape[0])
            ]
            rows.append(torch.stack(scores).sum(0))
        return torch.stack(rows)

    def masses(
        self, call: RecordedCall, chosen: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, str, Tensor, Tensor]]:
        """Block mass of every head in its orders, averaged over the batch.

        Args:
            call: the recorded call.
            chosen: names of the orders of each head.

        Yields:
            head, order, mass float32 [Qb, KVb] and the profile fitted to it.
        """
        device = call.q.device
        permutations = [
            torch.stack([self._orders.permutation(name, device) for name in names])
            for names in chosen
        ]
        for head, masses in block_mass(call.q, call.k, permutations, self._block):
            for name, mass in zip(chosen[head], masses, strict=True):
                profile = self._orders.geometry(name, device).fit(mass[None])[0]
                yield head, name, mass, profile

    def errors(
        self, call: RecordedCall, entry: int, chosen: Sequence[Sequence[str]]
    ) -> list[Tensor]:
        """Output errors of a batch entry by density and tail bias.

        Returns:
            For every head [orders, densities, biases + 1] in its chosen orders, see error_curves.
        """
        orders, device, scale = self._orders, call.q.device, call.q.shape[-1] ** -0.5
        if not maps_are_served(call.q):
            return [
                error_curves(
                    *call.inputs_of(entry, head),
                    [orders.permutation(name, device) for name in names],
                    self._block,
                    scale,
                    [orders.geometry(name, device, sampled=True) for name in names],
                    extra=call.extra(entry, head),
                )
                for head, names in enumerate(chosen)
            ]
        distinct = list(dict.fromkeys(name for names in chosen for name in names))
        maps = [
            (head, order)
            for order, name in enumerate(distinct)
            for head, names in enumerate(chosen)
            if name in names
        ]
        curves = map_errors(
            call,
            entry,
            maps,
            torch.stack([orders.permutation(name, device) for name in distinct]).int(),
            lambda order: orders.geometry(distinct[order], device, sampled=True),
            self._block,
            ERROR_DENSITIES,
            scale,
        ).curves()
        place = {(head, distinct[order]): n for n, (head, order) in enumerate(maps)}
        curves = curves.cpu()
        return [curves[[place[head, name] for name in names]] for head, names in enumerate(chosen)]

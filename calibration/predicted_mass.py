"""Block mass that a plan predicts, on any grid and with any block."""

from __future__ import annotations

import torch
from torch import Tensor

from .device_copy import to_device
from .log2_code import decode
from .plan import Plan
from .profile_correction import COARSE, POPULARITY, apply_correction
from .profile_geometry import ProfileGeometry
from .token_grid import TokenGrid

_ELEMENTS_AT_ONCE = 1 << 24


class MassPredictor:
    """Evaluates a plan's profiles; the geometry of each order is computed once."""

    def __init__(
        self,
        plan: Plan,
        grid: TokenGrid,
        block: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.plan = plan
        self.grid = grid
        self.block = block
        self.device = torch.device(device)
        self._geometries: dict[str, ProfileGeometry] = {}
        # The n-th head with a correction, in order, owns the n-th row of its tensor.
        self._row: dict[tuple[int, int, int], tuple[Tensor, int]] = {}
        for kind, rows in ((POPULARITY, plan.popularity), (COARSE, plan.coarse)):
            for row, place in enumerate((plan.correction == kind).nonzero().tolist()):
                layer, band, head = place
                self._row[layer, band, head] = (rows, row)

    def __call__(self, layer: int, band: int) -> Tensor:
        """float32 [H, Qb, KVb] on the predictor's device, rows sum to 1; the host never waits."""
        profiles = decode(
            to_device(self.plan.profile[layer, band], self.device),
            to_device(self.plan.profile_top[layer, band], self.device),
        )
        names = self.plan.order_names(layer)
        mass: Tensor | None = None
        for name in dict.fromkeys(names):
            geometry = self._geometry(name)
            heads = [head for head, other in enumerate(names) if other == name]
            if mass is None:
                shape = (len(names), geometry.query_blocks, geometry.key_blocks)
                mass = torch.empty(shape, device=self.device)
            together = max(1, _ELEMENTS_AT_ONCE // (shape[1] * shape[2]))
            for start in range(0, len(heads), together):
                part = heads[start : start + together]
                # One by one: a list of indices would be copied to the device, and waited for.
                found = geometry.evaluate(torch.stack([profiles[head] for head in part]))
                for head, one in zip(part, found, strict=True):
                    mass[head] = one
        assert mass is not None
        for head in range(len(names)):
            if (layer, band, head) in self._row:
                rows, row = self._row[layer, band, head]
                mass[head] = apply_correction(mass[head], rows[row])
        return mass

    def head(self, layer: int, band: int, head: int, order: str | None = None) -> Tensor:
        """Predicted block mass of one head, in its own order or in another one.

        Args:
            layer, band, head: which.
            order: name of another order; the head's own when None. Corrections belong to places
                of the head's own order, so that another order shows the profile alone.

        Returns:
            float32 [Qb, KVb] on the predictor's device, rows sum to 1.
        """
        own = self.plan.order_names(layer)[head]
        codes = self.plan.profile[layer, band, head]
        profile = decode(codes[None], self.plan.profile_top[layer, band, head : head + 1])
        mass = self._geometry(order or own).evaluate(profile.to(self.device))[0]
        if (order is None or order == own) and (layer, band, head) in self._row:
            rows, row = self._row[layer, band, head]
            mass = apply_correction(mass, rows[row])
        return mass

    def release(self) -> None:
        """Frees the geometries, up to 25 MB per order; the next call computes them again."""
        self._geometries.clear()

    def _geometry(self, name: str) -> ProfileGeometry:
        if name not in self._geometries:
            self._geometries[name] = ProfileGeometry(
                self.plan.bins, self.grid, name, self.block, self.device
            )
        return self._geometries[name]

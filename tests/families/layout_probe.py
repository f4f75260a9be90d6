"""Where the grid's tokens really lie in the sequence, found by changing single pixels.

Attention with all blocks does not depend on the order of its tokens, so that equal pictures do not
show that a family's layout is right. Here the noise is changed at a corner of the latent, and the
first layer's queries show which token that was.
"""

from __future__ import annotations

from typing import Any

SIDES = ((0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1))
"""Corners by (frame, row, column), 0 for the first and 1 for the last; the last one is decisive:
hosts pad a picture that does not fill its patches by repeating its first pixels."""
COPIES = 8


class FirstQuery:
    """Keeps the queries of the first layer's first call of a run."""

    def __init__(self) -> None:
        self.call: Any = None

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        self.call = None

    def end_run(self, failed: bool) -> None:
        pass

    def begin_forward(self) -> None:
        pass

    def cannot_serve(self, device: Any, dtype: Any, head_dim: int) -> str | None:
        return None

    def attend(self, call: Any) -> str:
        if self.call is None and call.layer == 0:
            self.call = call
        return "watched"

    def declined(self, reason: str) -> None:
        pass


def misplaced(case: Any, model: Any) -> list[str]:
    """What contradicts the layout that the family reads off the model; empty where it is right."""
    import comfy.sample
    import torch
    from paro_attention.nodes import attention_hook

    handler = FirstQuery()
    watched = attention_hook.install(model, handler)
    latent = comfy.sample.fix_empty_latent_channels(model, case.latent())
    noise = comfy.sample.prepare_noise(latent, 7)
    from_latent = model.model.model_type.name.startswith("IMG_TO_IMG")  # there is no noise in it

    def call_with(noise: Any) -> Any:
        with torch.inference_mode():
            comfy.sample.sample(
                watched, noise, 1, 1.0, "euler", "simple", case.positive(), case.negative(),
                noise if from_latent else latent, disable_pbar=True, seed=7,
            )  # fmt: skip
        return handler.call

    plain = call_with(noise)
    if plain is None:
        return ["no visual call"]
    found: list[str] = []
    if plain.key_bias is not None and plain.key_bias[:, plain.first :][:, : plain.tokens].any():
        found.append("the mask hides tokens of the grid, which the kernels would not")
    _, height, width = plain.grid
    for side in SIDES:
        changed = noise * 1.0
        visual = changed.unbind()[0] if changed.is_nested else changed  # nested: video and sound
        pixel = [-s for s in side]
        f, h, w = (s * (n - 1) for s, n in zip(side, plain.grid, strict=True))
        if case.frames is not None:
            pixel[0] = f = case.frames[side[0]]
        if case.columns is not None:
            w = side[2] * (case.columns - 1)
        visual[(slice(None), slice(None), *pixel[5 - visual.ndim :])] += 3.0
        distance = (call_with(changed).q - plain.q).float().norm(dim=-1)[0].norm(dim=0)
        token = plain.first + (f * height + h) * width + w
        moved = set((distance > 0.5 * distance.max()).nonzero().flatten().tolist())
        inside = set(range(plain.first, plain.first + plain.tokens))
        alone = side != SIDES[-1] or moved == {token}
        if token not in moved or not moved <= inside or len(moved) > COPIES or not alone:
            found.append(f"corner {side} should be token {token}, moved {sorted(moved)[:12]}")
    return found

"""How a model is sampled: CFG, prompts, areas, batches, context windows, two experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases.case import text
from neighbours import (
    EXACT,
    SPARSE,
    case,
    equal,
    last_run,
    load_paro,
    make_plan,
    planned,
    relative,
    scenario,
)

Take = Callable[[Any], torch.Tensor]


def survives(take: Take, model: Any = None, plan: Any = None, name: str = "wan-t2v") -> dict:
    """What a way of sampling gives without, with and again without Load PARO."""
    if model is None:
        model, plan = planned(name)
    dense = take(model)
    seen: dict[str, Any] = {}
    for kind, options in (("exact", EXACT), ("sparse", SPARSE)):
        result = take(load_paro(model, plan, **options))
        seen[kind] = last_run() | {
            "error": relative(result, dense),
            "differs": not equal(result, dense) and bool(result.isfinite().all()),
        }
    seen["removed_is_equal"] = equal(take(model), dense)
    return seen


def noted(model: Any, shapes: list[list[int]]) -> Any:
    """A clone that notes the shape of what the model is called with."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(list(x.shape))
        return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return clone


def taking(
    positive: Any, negative: Any = None, *, batch: int = 1, shapes: list | None = None,
    name: str = "wan-t2v", frames: int = 3, steps: tuple[int, int] = (0, 4), noise: bool = True,
    latent: torch.Tensor | None = None,
) -> Take:  # fmt: skip
    """Samples with these prompts; CFG 3 where there is a negative one."""

    def take(model: Any, start: torch.Tensor | None = latent) -> torch.Tensor:
        import comfy.sample

        if start is None:
            size = list(case(name).latent().shape)
            size[0] = batch
            if len(size) == 5:
                size[2] = frames
            start = torch.zeros(size)
        drawn = comfy.sample.prepare_noise(start, 7) if noise else torch.zeros_like(start)
        watched = model if shapes is None else noted(model, shapes)
        with torch.inference_mode():
            sampled = comfy.sample.sample(
                watched, drawn, 4, 3.0 if negative else 1.0, "euler", "simple", positive,
                negative or positive, start, disable_pbar=True, seed=7, disable_noise=not noise,
                start_step=steps[0], last_step=steps[1],
            )  # fmt: skip
        return sampled.float()

    return take


@scenario
def cfg_in_one_batch() -> dict[str, Any]:
    shapes: list[list[int]] = []
    seen = survives(taking(text(7, 64, 1), text(7, 64, 2), shapes=shapes))
    return seen | {"batches": sorted({shape[0] for shape in shapes})}


@scenario
def cfg_in_separate_calls() -> dict[str, Any]:
    shapes: list[list[int]] = []
    seen = survives(taking(text(7, 64, 1), text(5, 64, 2), shapes=shapes))
    return seen | {"batches": sorted({shape[0] for shape in shapes})}


@scenario
def batch_of_two() -> dict[str, Any]:
    shapes: list[list[int]] = []
    seen = survives(taking(text(7, 64, 1), text(7, 64, 2), batch=2, shapes=shapes))
    return seen | {"batches": sorted({shape[0] for shape in shapes})}


@scenario
def joint_text_of_other_length() -> dict[str, Any]:
    """Flux has its text in the sequence: prompts of 7 and 5 tokens, and another run with 9."""
    from cases.flux import prompt

    first = survives(taking(prompt(7, 1), prompt(5, 2), name="flux"), name="flux")
    second = survives(taking(prompt(9, 3), prompt(5, 2), name="flux"), name="flux")
    return {"first": first, "second": second}


@scenario
def areas_and_ranges() -> dict[str, Any]:
    """A prompt of three parts: everywhere at first, everywhere later, and in the upper half."""
    shapes: list[list[int]] = []
    (early,), (late,), (part,) = text(7, 64, 1), text(5, 64, 3), text(6, 64, 4)
    early[1] |= {"start_percent": 0.0, "end_percent": 0.5}
    late[1] |= {"start_percent": 0.5, "end_percent": 1.0}
    part[1] |= {"area": (3, 8, 10, 0, 0, 0), "strength": 1.0}
    seen = survives(taking([early, late, part], text(7, 64, 2), shapes=shapes))
    return seen | {"heights": sorted({shape[3] for shape in shapes})}


@scenario
def context_windows() -> dict[str, Any]:
    """7 frames in windows of 3: core's own handler, as its node sets it."""
    import comfy.context_windows as windows

    def windowed(model: Any) -> Any:
        clone = model.clone()
        clone.model_options["context_handler"] = windows.IndexListContextHandler(
            context_schedule=windows.get_matching_context_schedule("standard_static"),
            fuse_method=windows.get_matching_fuse_method("pyramid"),
            context_length=3, context_overlap=1, dim=2,
        )  # fmt: skip
        windows.create_prepare_sampling_wrapper(clone)
        return clone

    shapes: list[list[int]] = []
    take = taking(text(7, 64, 1), text(5, 64, 2), frames=7, shapes=shapes)
    model, plan = planned()
    before = survives(take, windowed(model), plan)
    dense = take(windowed(model))
    after = relative(take(windowed(load_paro(model, plan))), dense)
    return before | {"frames": sorted({shape[2] for shape in shapes}), "other_order_error": after}


@scenario
def two_grids_in_one_session() -> dict[str, Any]:
    """The same patched model samples one size after another, and the first again."""
    model, plan = planned()
    patched = load_paro(model, plan)
    errors = []
    for frames in (3, 2, 5, 1, 3):
        take = taking(text(7, 64, 1), text(5, 64, 2), frames=frames)
        errors.append(relative(take(patched), take(model)))
    return {"errors": errors, **last_run()}


@scenario
def two_experts() -> dict[str, Any]:
    """Wan 2.2: one model for the first steps, another for the last, each with its own plan."""
    from cases.case import tiny
    from cases.wan import CONFIG
    from paro_attention.nodes.model_identity import check_plan, identify

    high, high_plan = planned()
    low = tiny("WAN21_T2V", CONFIG, seed=9)
    low_plan = make_plan(low)
    prompts = text(7, 64, 1), text(5, 64, 2)
    first = taking(*prompts, steps=(0, 2))
    second = taking(*prompts, steps=(2, 4), noise=False)
    dense = second(low, first(high))
    seen: dict[str, Any] = {}
    for kind, options in (("exact", EXACT), ("sparse", SPARSE)):
        patched = load_paro(high, high_plan, **options), load_paro(low, low_plan, **options)
        middle = first(patched[0])
        stats = [last_run()]
        result = second(patched[1], middle)
        stats.append(last_run())
        seen[kind] = {"runs": stats, "error": relative(result, dense)}
    seen["removed_is_equal"] = equal(second(low, first(high)), dense)
    seen["warnings"] = len(check_plan(high_plan, identify(low)))
    return seen

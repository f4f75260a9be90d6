"""Which calls of the host are replaced, and how their layouts are read; needs no ComfyUI."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paro_attention.nodes.attention_call import (
    CROSS_ATTENTION,
    STATE_KEY,
    ForwardState,
    HostCall,
    ModuleLayers,
    VisualCall,
    classify,
)
from paro_attention.nodes.attention_hook import (
    OVERRIDE_KEY,
    _conditional_rows,
    _hook_layers,
    _make_forward_wrapper,
    _make_override,
)
from paro_attention.nodes.compiled_call import StaleGraphs
from paro_attention.nodes.families import Forward, Layout, find_family
from paro_attention.nodes.families.cogvideo import COGVIDEOX
from paro_attention.nodes.families.wan import WAN
from paro_attention.nodes.layer_list import parse_layers
from torch import Tensor, nn

B, H, D = 2, 3, 8
GRID = (2, 4, 3)
S = 24


def served(*_args: Any) -> None:
    return None


def state(layer: int | None = 0) -> ForwardState:
    made = ForwardState(Layout(GRID), 0.5, (0,))
    made.enter(None if layer is None else ModuleLayers((layer,)))
    return made


def flat(tokens: int = S, heads: int = H) -> Tensor:
    return torch.randn(B, tokens, heads * D)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"mask": torch.zeros(S, S)}, "mask"),
        ({"k": flat(16), "v": flat(16)}, "differ in shape"),
        ({"mask": torch.zeros(1, S)}, None),
        ({"k": flat(heads=1), "v": flat(heads=1)}, "differ in shape"),
        ({"k": flat(heads=1), "v": flat(heads=1), "enable_gqa": True}, None),
        ({"k": flat(heads=2), "v": flat(heads=2), "enable_gqa": True}, "differ in shape"),
        ({"k": flat(16), "v": flat(16), "enable_gqa": True}, "differ in shape"),
        ({"scale": 0.1}, "softmax scale"),
        ({"low_precision_attention": False}, "full precision"),
        ({"attn_precision": torch.float32}, "full precision"),
        ({"q": flat(36), "k": flat(36), "v": flat(36)}, "other tokens"),
    ],
)
def test_only_plain_visual_self_attention_is_replaced(change, reason):
    values = {"q": flat(), "k": flat(), "v": flat(), "heads": H} | change
    found = classify(HostCall(**values), state(), served)
    assert isinstance(found, VisualCall) if reason is None else reason in found


@pytest.mark.parametrize("skip_reshape", [False, True])
def test_shared_heads_are_given_to_every_query_head(skip_reshape):
    q, k, v = (torch.randn(B, heads, S, D) for heads in (6, 2, 2))
    given = (q, k, v) if skip_reshape else [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
    call = HostCall(*given, 6, skip_reshape=skip_reshape, enable_gqa=True)
    found = classify(call, state(), served)
    assert isinstance(found, VisualCall)
    ours = nn.functional.scaled_dot_product_attention(found.q, found.k, found.v)
    theirs = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(ours, theirs)


def test_values_with_their_heads_apart_are_taken_as_they_are():
    q, k, v = flat(), flat(), torch.randn(B, S, H, D)  # as Stable Diffusion 3 passes them
    found = classify(HostCall(q, k, v, H), state(), served)
    assert isinstance(found, VisualCall)
    assert torch.equal(found.v, v.transpose(1, 2))
    assert found.v.data_ptr() == v.data_ptr()
    assert isinstance(
        classify(HostCall(q, k, torch.randn(B, S, H, 2 * D), H), state(), served), str
    )


def test_calls_outside_a_hooked_layer_are_not_ours():
    call = HostCall(flat(), flat(), flat(), H)
    assert classify(call, state(layer=None), served) == CROSS_ATTENTION
    assert classify(call, None, served) == CROSS_ATTENTION


def test_what_the_kernels_cannot_serve_is_declined_with_their_reason():
    asked = []

    def cannot(device, dtype, head_dim):
        asked.append((device.type, dtype, head_dim))
        return "not on this card"

    call = HostCall(flat(), flat(), flat(), H)
    assert classify(call, state(), cannot) == "not on this card"
    assert asked == [("cpu", torch.float32, D)]


def test_positional_and_keyword_arguments_bind_alike():
    q, k, v, mask = flat(), flat(), flat(), torch.zeros(S, S)
    by_position = HostCall.bind((q, k, v, H, mask), {"_inside_attn_wrapper": True})
    by_name = HostCall.bind((q, k, v), {"heads": H, "mask": mask, "unheard_of": 1})
    for call in (by_position, by_name):
        assert call.q is q and call.heads == H and call.mask is mask


@pytest.mark.parametrize("skip_reshape", [False, True])
@pytest.mark.parametrize("skip_output_reshape", [False, True])
def test_layouts_are_views_and_round_trip(skip_reshape, skip_output_reshape):
    x = torch.randn(B, H, S, D) if skip_reshape else flat()
    call = HostCall(x, x, x, H, skip_reshape=skip_reshape, skip_output_reshape=skip_output_reshape)
    q, _, _ = call.heads_first()
    assert q.shape == (B, H, S, D)
    assert q.data_ptr() == x.data_ptr()
    out = call.restore(q)
    heads_first = x if skip_reshape else x.view(B, S, H, D).transpose(1, 2)
    expected = (
        heads_first if skip_output_reshape else heads_first.transpose(1, 2).reshape(B, S, H * D)
    )
    assert torch.equal(out, expected)


class Handler:
    """Answers with zeros, or with a reason."""

    def __init__(self, answer: str | None = None):
        self.answer, self.calls, self.reasons, self.forwards = answer, [], [], 0

    def begin_forward(self):
        self.forwards += 1

    def cannot_serve(self, device, dtype, head_dim):
        return None

    def attend(self, call):
        self.calls.append(call)
        return self.answer or torch.zeros_like(call.q)

    def declined(self, reason):
        self.reasons.append(reason)


def dense(q, k, v, heads, **kwargs):
    return q + 1


def test_override_hands_over_or_passes_on_unchanged():
    q = flat()
    options = {STATE_KEY: state(layer=4)}
    taking, leaving = Handler(), Handler("warm-up")
    kwargs = {"heads": H, "transformer_options": options, "_inside_attn_wrapper": True}
    assert torch.equal(
        _make_override(taking, None, StaleGraphs())(dense, q, q, q, **kwargs), torch.zeros_like(q)
    )
    assert (taking.calls[0].layer, taking.calls[0].sigma) == (4, 0.5)
    options[STATE_KEY] = state(layer=4)
    assert torch.equal(
        _make_override(leaving, None, StaleGraphs())(dense, q, q, q, **kwargs), q + 1
    )
    assert leaving.reasons == ["warm-up"]


def test_an_earlier_override_is_the_dense_path():
    q, seen = flat(), []

    def earlier(func, *args, **kwargs):
        seen.append((func, args, set(kwargs)))
        return args[0] * 2

    override = _make_override(Handler("dense layer"), earlier, StaleGraphs())
    kwargs = {"heads": H, "transformer_options": {STATE_KEY: state()}, "_inside_attn_wrapper": True}
    assert torch.equal(override(dense, q, q, q, **kwargs), q * 2)
    assert seen[0][0] is dense
    assert seen[0][1][0] is q
    assert seen[0][2] == {"heads", "transformer_options", "_inside_attn_wrapper"}


def test_override_is_shared_by_deep_copies():
    override = _make_override(Handler(), None, StaleGraphs())
    assert copy.deepcopy({"a": {"b": override}})["a"]["b"] is override


class WanAttention(nn.Module):
    num_heads, head_dim = H, D

    def forward(self, x, freqs=None, transformer_options=None):
        override = transformer_options[OVERRIDE_KEY]
        return override(dense, x, x, x, heads=H, transformer_options=transformer_options)


class WanLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = WanAttention(), WanAttention()

    def forward(self, x, transformer_options):
        x = self.self_attn(x, None, transformer_options=transformer_options)
        return self.cross_attn(x, None, transformer_options=transformer_options)


class WanModel(nn.Module):
    patch_size = (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([WanLayer(), WanLayer()])


class Executor:
    """Stands in for ComfyUI's WrapperExecutor around a model's forward."""

    def __init__(self, model):
        self.class_obj = model

    def __call__(self, latent, timestep, context, transformer_options):
        x = flat()
        for block in self.class_obj.blocks:
            x = block(x, transformer_options=transformer_options)
        return x


def test_layers_are_told_apart_from_cross_attention_of_the_same_shape():
    model, handler = WanModel(), Handler()
    for _ in range(3):
        _hook_layers(model, WAN)  # idempotent
    wrapper = _make_forward_wrapper(handler, WAN, StaleGraphs())
    options = {"sigmas": torch.tensor([0.7, 0.7]), "cond_or_uncond": [1, 0]}
    latent = torch.zeros(B, 16, 2, 7, 5)  # 7 x 5 pixels of latent are padded to 4 x 3 tokens
    wrapper(Executor(model), latent, None, None, options)
    assert [call.layer for call in handler.calls] == [0, 1]
    assert handler.reasons == [CROSS_ATTENTION] * 2
    assert handler.calls[0].grid == GRID
    assert handler.calls[0].sigma == pytest.approx(0.7)
    assert handler.calls[0].conditional_rows == (1,)
    assert handler.forwards == 1
    assert STATE_KEY not in options


def test_a_forward_outside_a_sampler_is_left_alone():
    model, handler = WanModel(), Handler()
    _hook_layers(model, WAN)
    options = {OVERRIDE_KEY: lambda func, *args, **kwargs: func(*args, **kwargs)}
    wrapper = _make_forward_wrapper(handler, WAN, StaleGraphs())
    wrapper(Executor(model), torch.zeros(B, 16, 2, 8, 6), None, None, transformer_options=options)
    assert (handler.forwards, handler.calls) == (0, [])


def test_a_replaced_override_is_put_back_with_the_newcomer_as_dense_path():
    model, handler, seen = WanModel(), Handler("dense layer"), []

    def newcomer(func, *args, **kwargs):
        seen.append(func)
        return func(*args, **kwargs)

    _hook_layers(model, WAN)
    options = {"sigmas": torch.tensor([0.7]), OVERRIDE_KEY: newcomer}
    _make_forward_wrapper(handler, WAN, StaleGraphs())(
        Executor(model), torch.zeros(B, 16, 2, 8, 6), None, None, options
    )
    assert len(handler.calls) == 2
    assert len(seen) == 4


def test_hooks_are_inert_without_our_state():
    model = WanModel()
    _hook_layers(model, WAN)
    options = {OVERRIDE_KEY: lambda func, *args, **kwargs: func(*args, **kwargs)}
    Executor(model)(None, None, None, options)
    assert set(options) == {OVERRIDE_KEY}


def test_conditional_rows_follow_the_packing_of_conditions():
    assert _conditional_rows([0], 2) == (0, 1)
    assert _conditional_rows([1, 0], 4) == (2, 3)
    assert _conditional_rows([1], 1) == ()
    assert _conditional_rows(None, 2) is None


def test_families_are_found_by_class_and_other_models_are_not():
    class VaceWanModel(WanModel):
        pass

    assert find_family(WanModel()) is WAN
    assert find_family(VaceWanModel()) is WAN
    assert find_family(nn.Linear(2, 2)) is None
    assert WAN.attention_shape(WanModel()) == (2, H, D)


def test_a_forward_with_unknown_arguments_runs_dense():
    video = Forward(torch.zeros(1, 16, 2, 8, 6))
    model = SimpleNamespace(patch_size=2, patch_size_t=None)
    reason = "called with arguments that PARO does not know"
    assert COGVIDEOX.read(model, video) == reason  # the text is missing
    assert COGVIDEOX.read(model, Forward([video.x], {"context": torch.zeros(1, 7, 4)})) == reason
    assert COGVIDEOX.read(model, Forward(video.x, {"context": torch.zeros(1, 7, 4)})) == Layout(
        (2, 4, 3), side="last", extra=7
    )


def test_layer_lists():
    assert parse_layers("", 4) == ()
    assert parse_layers("0, 1,-1", 8) == (0, 1, 7)
    assert parse_layers("2-4,3", 8) == (2, 3, 4)
    for bad in ("8", "a", "3-1", "-9", "1--2"):
        with pytest.raises(ValueError, match="dense_layers must name layers 0 to 7"):
            parse_layers(bad, 8)

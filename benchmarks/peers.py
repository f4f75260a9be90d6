"""Other packages' attention, one small adapter each, for benchmarks/attention.py.

A peer that cannot run says why, and the report lists it with that reason. What a peer needs once
per mask or per input format (block lists, a cast to FP8) happens in ``bind``, outside of its time;
``whole_call`` tells whether its time then covers what a user pays for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from bench_cases import dense_error, relative_error
from paro_attention.kernels import BlockMask
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Call = Callable[[], Tensor]
BASELINE = "torch SDPA (default)"
HOPPER = (9, 0)
ANY = (8, 0)


@dataclass(frozen=True, slots=True)
class Peer:
    """One function of another package.

    Attributes:
        key: short name for the command line.
        name: name in reports.
        bind: (q, k, v [B, H, S, D], mask, density) -> a call that returns [B, H, S, D].
        missing: why its package cannot be used here, None where it can.
        budget: largest relative error against float32 rows that lets it be timed.
        bits: of Q.K and of P.V.
        whole_call: its time holds its own quantisation and mask work.
        block: (query, key) tokens of the blocks that it is given as a mask; None: no mask.
        own_blocks: it chooses its blocks by itself, a share of them that is the density.
        least: compute capability that it needs; exactly this one with ``only``.
        head_dims: served head dimensions; () means any.
        note: said in the report.
    """

    key: str
    name: str
    bind: Callable[[Tensor, Tensor, Tensor, BlockMask | None, float], Call]
    missing: Callable[[], str | None] = lambda: None
    budget: float = 0.006
    bits: tuple[int, int] = (16, 16)
    whole_call: bool = True
    block: tuple[int, int] | None = None
    own_blocks: bool = False
    least: tuple[int, int] = ANY
    only: bool = False
    head_dims: tuple[int, ...] = ()
    note: str = ""

    @property
    def sparse(self) -> bool:
        return self.own_blocks or self.block is not None

    def available(self, capability: tuple[int, int], head_dim: int) -> str | None:
        """Why the peer cannot run on such a card at such a head dimension; None where it can."""
        if capability < self.least or (self.only and capability != self.least):
            return f"needs sm_{self.least[0]}{self.least[1]}" + ("" if self.only else " or newer")
        if self.head_dims and head_dim not in self.head_dims:
            return f"serves head_dim {' and '.join(map(str, self.head_dims))}, not {head_dim}"
        return self.missing()

    def error(
        self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None
    ) -> tuple[float, float]:
        """(error that the gate looks at, error for the report), relative to float32 rows.

        A peer with blocks of its own is gated on a small problem with every block kept, where it
        must equal attention; its reported error is against full attention.
        """
        if self.own_blocks:
            x = torch.randn(3, 1, 2, 4096, q.shape[-1], dtype=q.dtype, device=q.device)
            gated = dense_error(self.bind(x[0], x[1], x[2], None, 1.0)(), x[0], x[1], x[2])
            return gated, dense_error(out, q, k, v)
        if mask is None:
            error = dense_error(out, q, k, v)
        else:
            order = torch.arange(q.shape[2], dtype=torch.int32, device=q.device)
            order = order.expand(q.shape[1], -1)
            error = relative_error(out, q, k, v, mask, order, tail=False)
        return error, error


def installed(module: str, version: Callable[[str], bool] = lambda _: True) -> str | None:
    """Why a package cannot be imported (None where it can); ``version`` must accept what is."""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        importlib.import_module(module)
        found = importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception as error:
        return f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0][:160]
    return None if version(found) else f"installed in another version, {found}"


def _sdpa(backend: SDPBackend | None) -> Callable[..., Call]:
    def bind(q: Tensor, k: Tensor, v: Tensor, _mask: object, _density: float) -> Call:
        def call() -> Tensor:
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    return bind


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_mask(mask: BlockMask) -> Any:
    """FlexAttention's block mask with the same blocks, all of them whole."""
    from torch.nn.attention import flex_attention

    dense = mask.to_dense()[None]
    counts = dense.sum(-1, dtype=torch.int32)
    listed = dense.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).int()
    return flex_attention.BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(listed),
        counts,
        listed,
        BLOCK_SIZE=mask.block,
        seq_lengths=(mask.tokens, mask.tokens),
    )


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, _density: float) -> Call:
    assert mask is not None
    blocks, attend = flex_mask(mask), _compiled_flex()
    return lambda: attend(q, k, v, block_mask=blocks)


def _fa3(fp8: bool) -> Callable[..., Call]:
    def bind(q: Tensor, k: Tensor, v: Tensor, _mask: object, _density: float) -> Call:
        from fa3_fwd_interface import flash_attn_func

        inputs = [x.transpose(1, 2) for x in (q, k, v)]
        scales: dict[str, Tensor] = {}
        if fp8:
            for name, index in (("q", 0), ("k", 1), ("v", 2)):
                x = inputs[index]
                scale = x.float().abs().amax((1, 3)).div_(448.0)  # [B, H]
                inputs[index] = (x.float() / scale[:, None, :, None]).to(torch.float8_e4m3fn)
                scales[f"{name}_descale"] = scale

        def call() -> Tensor:
            out = flash_attn_func(*inputs, **scales)
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return call

    return bind


def _sage1(q: Tensor, k: Tensor, v: Tensor, _mask: object, _density: float) -> Call:
    from sageattention import sageattn

    # It subtracts K's mean in place: it gets a K of its own.
    own_k = k.clone()
    return lambda: sageattn(q, own_k, v, tensor_layout="HND")


def _sage2(q: Tensor, k: Tensor, v: Tensor, _mask: object, _density: float) -> Call:
    attend = importlib.import_module(_sage2_module()).sageattn
    return lambda: attend(q, k, v, tensor_layout="HND")


def _sage2_module() -> str:
    """Both versions are named sageattention; beside version 1 a renamed version 2 is taken."""
    renamed = "sageattention2"
    return renamed if importlib.util.find_spec(renamed) is not None else "sageattention"


def _kitchen_int8(q: Tensor, k: Tensor, v: Tensor, _mask: object, _density: float) -> Call:
    from comfy_kitchen import int8_attention

    return lambda: int8_attention(q, k, v)


def _sol(q: Tensor, k: Tensor, v: Tensor, _mask: object, density: float) -> Call:
    from comfy_kitchen import sol_attn

    inputs = [x.transpose(1, 2) for x in (q, k, v)]
    # It keeps at most all blocks but one.
    return lambda: sol_attn(*inputs, topk_ratio=min(density, 0.999)).transpose(1, 2)


def _sparge_masked(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, _density: float
) -> Call:
    from spas_sage_attn import block_sparse_sage2_attn_cuda

    assert mask is not None
    blocks = mask.to_dense()[None].contiguous()
    return lambda: block_sparse_sage2_attn_cuda(q, k, v, mask_id=blocks)


def _sparge_topk(q: Tensor, k: Tensor, v: Tensor, _mask: object, density: float) -> Call:
    from spas_sage_attn import spas_sage2_attn_meansim_topk_cuda

    return lambda: spas_sage2_attn_meansim_topk_cuda(q, k, v, topk=density)


def _kitchen(function: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        reason = installed("comfy_kitchen")
        if reason is None and not getattr(
            importlib.import_module("comfy_kitchen"), f"{function}_is_available"
        )(torch.device("cuda")):
            return "comfy-kitchen's CUDA extension does not serve this GPU"
        return reason

    return missing


def _first(version: str) -> bool:
    return version.startswith("1.")


PEERS = (
    Peer("sdpa", BASELINE, _sdpa(None)),
    Peer("cudnn", "torch SDPA (cuDNN)", _sdpa(SDPBackend.CUDNN_ATTENTION)),
    Peer("fa2", "torch SDPA (FlashAttention-2)", _sdpa(SDPBackend.FLASH_ATTENTION)),
    Peer(
        "flex", "FlexAttention, compiled", _flex, block=(128, 128),
        note="random 128x128 mask of its own",
    ),
    Peer("fa3", "FlashAttention-3 (fa3-fwd), bf16", _fa3(False),
         lambda: installed("fa3_fwd_interface"), least=HOPPER, only=True),
    Peer("fa3-fp8", "FlashAttention-3 (fa3-fwd), fp8", _fa3(True),
         lambda: installed("fa3_fwd_interface"), budget=0.09, bits=(8, 8), whole_call=False,
         least=HOPPER, only=True, note="inputs already fp8, one scale per head"),
    Peer("sage1", "SageAttention 1 (Triton)", _sage1,
         lambda: installed("sageattention", _first), budget=0.03, bits=(8, 16),
         head_dims=(64, 96, 128)),
    Peer("sage2", "SageAttention 2 (CUDA)", _sage2,
         lambda: installed(_sage2_module(), lambda version: not _first(version)),
         budget=0.06, bits=(8, 8), head_dims=(64, 128)),
    Peer("int8", "comfy-kitchen int8_attention", _kitchen_int8, _kitchen("int8_attention"),
         budget=0.07, bits=(8, 8)),
    Peer("sol", "comfy-kitchen sol_attn", _sol, _kitchen("sol_attn"), budget=0.09, bits=(8, 8),
         own_blocks=True, head_dims=(128,), note="chooses its blocks, pooled tail"),
    Peer("sparge", "SpargeAttn, mask given", _sparge_masked, lambda: installed("spas_sage_attn"),
         budget=0.09, bits=(8, 8), block=(64, 128), least=HOPPER, only=True, head_dims=(64, 128),
         note="random 64x128 mask, blocks dropped"),
    Peer("sparge-topk", "SpargeAttn meansim_topk", _sparge_topk,
         lambda: installed("spas_sage_attn"), budget=0.09, bits=(8, 8), own_blocks=True,
         least=HOPPER, only=True, head_dims=(64, 128), note="chooses its blocks, others dropped"),
)  # fmt: skip
# What someone would choose at a given size; the others differ from these by constant factors.
SOME = ("sdpa", "fa3", "fa3-fp8", "sage2", "int8", "sol", "sparge")


def selected(names: str) -> tuple[Peer, ...]:
    """Peers of a list such as "all", "some", "none" or "fa3,sol"; the baseline always runs.

    Raises:
        ValueError: a name that no peer goes by.
    """
    known = {peer.key: peer for peer in PEERS}
    keys = {"all": tuple(known), "some": SOME, "none": ()}.get(names, tuple(names.split(",")))
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(
            f"peers must be all, some, none or names out of {', '.join(known)}, got {unknown[0]!r}"
        )
    return tuple(peer for peer in PEERS if peer.key == "sdpa" or peer.key in keys)

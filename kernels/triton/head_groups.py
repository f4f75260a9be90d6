"""A call in groups of heads, where its workspace does not fit beside what is on the card.

Nothing in the kernels looks from one head at another. A group is a call of its own on views of the
caller's tensors that writes its heads' channels of the same output rows: the bits are those of the
whole call, and each group gets the memory of the one before it from torch's allocator.

What fits is learnt from what did not: the stream is never waited for, and a call that fits is not
asked anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Calls in groups before a larger group is tried again; twice as many each time.
PATIENCE = 64
# By name, the arguments of a call that have a row per batch entry and head, or per head.
OF_ENTRY_AND_HEAD = ("q", "k", "v", "k_mean")
OF_HEAD = ("order_of_head", "tail_bias", "computed_bits")


@dataclass(slots=True)
class HeadGroups:
    """How many heads of one kind of call run together.

    Attributes:
        batch, heads: of the call.
        workspace: bytes that the whole call allocates beside its output.
        together: heads that run together; ``batch * heads`` is the whole call, and fewer are heads
            of one batch entry.
    """

    batch: int
    heads: int
    workspace: int
    together: int
    _calls: int = 0
    _tries: int = 0

    @classmethod
    def of(cls, batch: int, heads: int, workspace: int, device: torch.device) -> HeadGroups:
        """The first choice for a kind of call: the most heads whose workspace may fit."""
        groups = cls(batch, heads, workspace, batch * heads)
        groups.together = groups._fitting(device)
        return groups

    def run(
        self,
        given: dict[str, Tensor],
        out: Tensor,
        attend: Callable[[dict[str, Tensor], Tensor], None],
    ) -> None:
        """Runs a call, in as few groups as fit.

        Args:
            given: the call's arguments by name, as ``attend_blocks`` has them.
            out: [B, H, S, D] stored as [B, S, H, D], written here.
            attend: attention of some heads; it gets their views of ``given`` and ``out``. It
                allocates what it needs before it launches anything.

        Raises:
            torch.cuda.OutOfMemoryError: one head alone does not fit.
        """
        self._reconsider(out.device)
        done, pairs = 0, self.batch * self.heads
        while done < pairs:
            entry, first = divmod(done, self.heads)
            last = min(first + self.together, self.heads)
            count = pairs if self.together >= pairs else last - first
            part = (given, out) if count == pairs else _part(given, out, entry, first, last)
            try:
                attend(*part)
            except torch.cuda.OutOfMemoryError:
                fits = False
            else:
                fits = True
            # Not inside `except`: the exception keeps what its frames hold from being freed.
            if fits:
                done += count
            else:
                self.shrink(out)

    def shrink(self, out: Tensor) -> None:
        """Takes the next smaller group, because this one did not fit.

        Raises:
            torch.cuda.OutOfMemoryError: it was one head.
        """
        smaller = [size for size in self._sizes() if size < self.together]
        if not smaller:
            raise torch.cuda.OutOfMemoryError(self._refusal(out))
        self.together = smaller[0]
        self._calls = 0

    def _sizes(self) -> list[int]:
        """The sizes of a group, largest first: all, one batch entry, its halves, ... one head."""
        sizes = [self.batch * self.heads, self.heads]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        return sizes

    def _bytes_of(self, together: int) -> int:
        return self.workspace * together // (self.batch * self.heads)

    def _fitting(self, device: torch.device) -> int:
        """The largest group whose workspace the card may have room for; 1 at least."""
        free = free_bytes(device)
        fitting = (n for n in self._sizes() if free is None or self._bytes_of(n) <= free)
        return next(fitting, 1)

    def _reconsider(self, device: torch.device) -> None:
        """Tries a larger group from time to time: what else was on the card may have left."""
        if self.together == self.batch * self.heads:
            return
        self._calls += 1
        if self._calls >= PATIENCE << self._tries:
            self._calls = 0
            self._tries += 1
            self.together = max(self.together, self._fitting(device))

    def _refusal(self, out: Tensor) -> str:
        free = free_bytes(out.device)
        seen = "" if free is None else f", {free / 2**20:.0f} MiB are free on {out.device}"
        return (
            f"sparse attention of {list(out.shape)} (batch, heads, tokens, channels) in "
            f"{str(out.dtype).removeprefix('torch.')} needs {self._bytes_of(1) / 2**20:.0f} MiB of "
            f"workspace even for one head at a time{seen}; unload other models or let more of this "
            "one be offloaded (ComfyUI: --lowvram, --reserve-vram), or use fewer tokens"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that a tensor could have: free on the card, or held by torch for later; None on a CPU.

    More than one tensor can get where what torch holds is in pieces.
    """
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _part(
    given: dict[str, Tensor], out: Tensor, entry: int, first: int, last: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments and the output of heads first..last of a batch entry."""
    part = dict(given)
    for name in OF_ENTRY_AND_HEAD:
        if name in given:
            part[name] = given[name][entry : entry + 1, first:last]
    for name in OF_HEAD:
        part[name] = _aligned(given[name][first:last])
    # The lists stay where they are: offsets count from the first head's first list.
    rows = given["computed_bits"].shape[1]
    part["row_offsets"] = _aligned(given["row_offsets"][first * rows : last * rows + 1])
    if given["key_bias"].ndim == 2 and given["key_bias"].shape[0] > 1:
        part["key_bias"] = _aligned(given["key_bias"][entry : entry + 1])
    return part, out[entry : entry + 1, first:last]


def _aligned(x: Tensor) -> Tensor:
    """x, copied where another compilation would be needed for where it begins."""
    return x if x.data_ptr() % 16 == 0 else x.clone()

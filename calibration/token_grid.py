"""The token grid: how a model's visual tokens lie in (frame, height, width)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Size of the visual token grid after patchify; tokens lie frame by frame, row by row.

    Attributes:
        frames: tokens along time (1 for an image).
        height: tokens along the picture's height.
        width: tokens along the picture's width.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.frames * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return (self.frames, self.height, self.width)

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

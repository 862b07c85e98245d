"""Read depth: what the tokens T (asked for) and S (measured) say."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

LOWEST_TOTAL = 20
HIGHEST_LOG10 = 12
_PATTERN = re.compile(r"^([taf])(\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class TargetDepth:
    """The read depth that is asked for."""

    mode: Literal["t", "a", "f"]  # log10 of total counts; what to add to it; or a factor
    number: float

    @classmethod
    def parse(cls, depth: str | float) -> TargetDepth:
        """Read ``"t4"``, ``"a5"``, ``"f1"`` as in the published code, or total counts."""
        if isinstance(depth, str) and (match := _PATTERN.match(depth)):
            mode, number = match[1], float(match[2])
            is_possible = number > 0 if mode == "f" else number <= HIGHEST_LOG10
            if is_possible:
                return cls(mode, number)  # type: ignore[arg-type]
        elif isinstance(depth, Real) and LOWEST_TOTAL <= depth <= 10**HIGHEST_LOG10:
            return cls("t", math.log10(depth))
        raise ValueError(
            f"target_depth={depth!r} is no read depth. Write 't4' for 10^4 counts in all, 'f2' "
            "for twice the cell's own total, 'a1' for ten times it (10^1), or the total itself as "
            f"a number of at least {LOWEST_TOTAL}, for instance 10_000."
        )

    def tokens(self, library_size_c: Tensor) -> Tensor:
        """Return T and S of every cell, log10 of total counts, shape ``(n_cells, 2)``."""
        source_c = library_size_c.log10()
        if self.mode == "t":
            target_c = torch.full_like(source_c, self.number)
        elif self.mode == "a":
            target_c = source_c + self.number
        else:
            target_c = (library_size_c * self.number).log10()
        return torch.stack([target_c, source_c], dim=1)

"""PyTorch modules of a few lines, for what is the same with large ones."""

from __future__ import annotations

from typing import Any

import torch


class Tiny(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """A picture of 3 x 4 x 4 to two numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, pictures: Any) -> Any:
        return self.head(torch.relu(self.convolution(pictures)).flatten(1))


class Mixing(Tiny):
    """One whose rows depend on each other, and on how many they are."""

    def forward(self, pictures: Any) -> Any:
        return super().forward(pictures) + pictures.mean()


class Frozen(Tiny):
    """One that tells by Python's own means how many rows it has: a trace freezes that."""

    def forward(self, pictures: Any) -> Any:
        return super().forward(pictures) * float(len(pictures))


class Viewing(Tiny):
    """One that takes a view of what its convolution gives, which it cannot where channels are last."""

    def forward(self, pictures: Any) -> Any:
        return self.head(torch.relu(self.convolution(pictures)).view(len(pictures), -1))


class Layout(Tiny):
    """One whose output depends on how its convolution's weights lie in memory, as none should."""

    def forward(self, pictures: Any) -> Any:
        return super().forward(pictures) * (1.0 if self.convolution.weight.is_contiguous() else 2.0)


class Guarded(Tiny):
    """One whose output depends on who computes its convolution, as none should."""

    def forward(self, pictures: Any) -> Any:
        return super().forward(pictures) * (2.0 if "forward" in vars(self.convolution) else 1.0)


class Adding(torch.nn.Conv2d):  # type: ignore[misc]  # as above
    """A convolution that computes something else."""

    def forward(self, pictures: Any) -> Any:
        return super().forward(pictures) + 1


class Lookup(torch.nn.Module):  # type: ignore[misc]  # as above
    """Four whole numbers to the mean of the vectors that a table has for them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 3)

    def forward(self, ids: Any) -> Any:
        return self.table(ids).mean(1)


SHAPE = (3, 4, 4)
EXAMPLE = (torch.zeros(2, *SHAPE),)
IDS = (torch.zeros(2, 4, dtype=torch.int64),)


def script(module: Any, path: Any, example: Any = EXAMPLE) -> str:
    torch.jit.save(torch.jit.trace(module.eval(), example, check_trace=False), str(path))
    return str(path)


def export(module: Any, path: Any, is_dynamic: bool = True, example: Any = EXAMPLE) -> str:
    shapes = ({0: torch.export.Dim("batch")},) if is_dynamic else None
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=shapes), str(path))
    return str(path)

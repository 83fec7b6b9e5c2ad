"""What the networks' configurations share: plain dictionaries in and out, for checkpoint metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from typing_extensions import Self


@dataclass(frozen=True)
class Config:
    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Lists become tuples (JSON knows no tuples); entries of other versions are passed over."""
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**chosen)

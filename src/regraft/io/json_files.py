"""JSON as regraft writes it: records as plain values, no NaN and no infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def dumps(value: Any, **how: Any) -> str:
    """Return JSON that can be written as UTF-8, whatever bytes file names consist of."""
    text = json.dumps(value, ensure_ascii=False, **how)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8: \\udcff reads back the same
        return json.dumps(value, **how)
    return text


def plain(value: Any) -> Any:
    """Return a value as JSON's types: dataclasses as objects, numbers that are not finite as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

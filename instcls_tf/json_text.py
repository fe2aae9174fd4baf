"""Answers as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from instcls_tf.errors import is_unseen


def json_of(answer: Any) -> str:
    """An answer as JSON in one line: null where a number is not finite, for which JSON has no word.

    Letters of all scripts stand as they are, so that a name can be given to the next command; escaped is what cannot be
    seen, and bytes that are no text.
    """
    text = json.dumps(_finite(answer), allow_nan=False, ensure_ascii=False)
    return "".join(json.dumps(letter)[1:-1] if is_unseen(letter) else letter for letter in text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""JSON lines: one object per line, or what is wrong with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csm_mlx.errors import CsmError


def read_json_lines(path: Path, example: str, error: type[CsmError]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number of the line, its object or what is wrong with it) for every line that is not blank.

    example: of a good line, for the messages.

    Raises `error` when the file is no text that can be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as failed:
        raise error(f"cannot read {path}: {failed.strerror}; expected lines such as {example}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is no UTF-8 text; expected lines such as {example}") from None
    for number, line in enumerate(text.split("\n"), 1):  # `splitlines` cuts at U+2028 too, which JSON may hold
        if line.strip():
            yield number, _object(line, example)


def _object(line: str, example: str) -> dict[str, Any] | str:
    try:
        data = json.loads(line)
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "it holds half of a character (\\ud800 to \\udfff come in pairs); write the character itself"
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error}); expected one object per line, {example}"
    if not isinstance(data, dict):
        return f"{line.strip():.40} is a {type(data).__name__}, expected an object, {example}"
    return data

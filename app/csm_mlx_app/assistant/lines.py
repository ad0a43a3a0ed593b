"""A conversation told in lines: for people where there is no terminal, and for programs."""

import json
import sys
from pathlib import Path
from typing import Any

from csm_mlx_app import console


class Plain:
    """Lines for people, on stderr; `typed` are the user's own words, which are there already."""

    def __init__(self, typed: bool = False):
        self._typed = typed

    def event(self, event: dict[str, Any]) -> None:
        line = None if self._typed and event["event"] == "transcript" else told(event)
        if line is not None:
            console.talk(line)

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        pass

    def close(self) -> None:
        pass


class JsonLines:
    """One object per line on stdout, as it happens."""

    def event(self, event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        pass

    def close(self) -> None:
        pass


def told(event: dict[str, Any]) -> str | None:
    """The line that a person reads about an event, or None where there is nothing to say."""
    match event["event"]:
        case "ready":
            return _who(event)
        case "transcript":
            return f"you: {event['text']}"
        case "clause":
            return f"assistant: {event['text']}"
        case "interrupted":
            return f"(interrupted; heard was: {event['heard'] or 'nothing'})"
        case "turn" if "voice_to_voice" in event["latency_ms"]:
            return f"({event['latency_ms']['voice_to_voice']} ms from the end of your words to the first sound)"
        case "note" | "fault":
            return f"note: {event['message']}"
        case "error":
            return f"error: {event['message']}"
        case "summary":
            turns = "1 turn" if event["turns"] == 1 else f"{event['turns']} turns"
            if "voice_to_voice_p50_ms" not in event:
                return turns
            half, most = event["voice_to_voice_p50_ms"], event["voice_to_voice_p95_ms"]
            return f"{turns}; from the end of your words to the first sound: p50 {half} ms, p95 {most} ms"
    return None


def _who(ready: dict[str, Any]) -> str:
    parts = [f"{Path(ready['model']).name} speaks", f"{ready['llm']} answers"]
    if "asr" in ready:
        parts.append(f"{Path(ready['asr']).name} listens")
    return f"{', '.join(parts)}: {'speak' if ready.get('input') else 'type'}"

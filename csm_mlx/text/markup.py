"""What is written for the eye and not for the ear: Markdown, HTML, links, emoji."""

import html
import re
import unicodedata

_FENCED = re.compile(r"^[ \t]*(```|~~~)(?:(?!\1)[^\n])*(?:\n.*?(?:^[ \t]*\1[ \t]*$|\Z)|\Z)", re.DOTALL | re.MULTILINE)
_RULE = re.compile(r"^\s*(?:([-*_=])\s*)(?:\1\s*){2,}$")
_TABLE_RULE = re.compile(r"^[\s|:-]*\|[\s|:-]*$")
_HEADING = re.compile(r"^\s*#{1,6}\s+(.*?)\s*#*$")
_BULLET = re.compile(r"^\s*[-*+•‣◦]\s+(?:\[[ xX]\]\s+)?(.*)$")
_NUMBERED = re.compile(r"^\s*([0-9]{1,2})[.)]\s+(.*)$")

_INLINE: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"<!--.*?-->", " "),
        (r"<((?:https?://|mailto:)?[^<>\s]+[.@][^<>\s]+)>", r"\1"),
        (r"</?[A-Za-z][^<>]*>", " "),
        (r"!?\[([^\[\]]*)\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)?(?:\s+\"[^\"]*\")?\)", r"\1"),
        (r"`+([^`]*)`+", r"\1"),
        (r"(?<![\w*\\])(\*{1,3})(?=[^\s*])(.+?)(?<=[^\s*\\])\1(?![\w*])", r"\2"),
        (r"(?<![\w\\])(_{1,3}|~~)(?=[^\s_~])(.+?)(?<=[^\s_~\\])\1(?!\w)", r"\2"),
        # Stage directions, citations and notes: [laughs], [1], [citation needed].
        (r"\[[^\[\]\n]*\]", " "),
        (r"(?<!\S)(?:[:;=8]['o-]?[)(DPp/|\]\[]|<3|:-?\*|\^_?\^|¯\\_\(ツ\)_/¯)(?=[\s.,!?]|$)", " "),
    ]
]

_TOP_DOMAINS = "com|org|net|io|ai|dev|gov|edu|app|info|co|uk|de|fr|eu|me|tv"
_EMAIL = re.compile(r"(?<![\w.+-])(?:mailto:)?([\w.+-]+)@([\w-]+(?:\.[\w-]+)+)")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"”’)\]]*[^\s<>\"”’)\].,;:!?'*_]")
_DOMAIN = re.compile(rf"(?<![\w.@/])(?:[A-Za-z0-9-]+\.)+(?:{_TOP_DOMAINS})\b(?![.@][\w])(?:/[^\s,;)\"]*[\w/])?")
_FILE_ENDING = re.compile(
    r"(?<=[\w])\.(?=(?:py|js|ts|sh|json|jsonl|ya?ml|toml|md|txt|csv|pdf|html?|css|png|jpe?g|gif|wav|mp3|mp4|flac|zip"
    r"|gz|safetensors)\b)|(?<![\w.])\.(?=NET\b)|(?<=[A-Za-z])\.(?=(?:js|NET)\b)"
)


def strip_markup(text: str) -> str:
    """Prose of a text in Markdown or light HTML, on one line; blocks such as list items end with a full stop.

    Emphasis, headings, links and inline code keep their words; blocks of code, images' addresses, `[brackets]` with
    what is in them, and emoticons go.
    """
    text = _FENCED.sub("\n\n", text.replace("\r\n", "\n"))
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    text = html.unescape(text)
    blocks: list[tuple[str, bool]] = []
    goes_on = False
    for line in text.split("\n"):
        words, is_block = _line(line)
        if words and goes_on and not is_block:
            blocks[-1] = (f"{blocks[-1][0]} {words}", blocks[-1][1])
        elif words:
            blocks.append((words, is_block))
        goes_on = bool(words) and not _HEADING.match(line)
    last = len(blocks) - 1
    return " ".join(_closed(words) if is_block or i < last else words for i, (words, is_block) in enumerate(blocks))


def _line(line: str) -> tuple[str, bool]:
    """The words of a line, and whether it is a block of its own."""
    line = re.sub(r"^\s*(?:>\s?)+", "", line)
    if _RULE.match(line) or _TABLE_RULE.match(line):
        return "", True
    if match := _HEADING.match(line) or _BULLET.match(line):
        return match[1].strip(), True
    if match := _NUMBERED.match(line):
        return f"{match[1]}, {match[2].strip()}", True
    if line.lstrip().startswith("|"):
        return ", ".join(cell.strip() for cell in line.split("|") if cell.strip()), True
    return line.strip(), False


def _closed(block: str) -> str:
    return block if re.search(r"[.!?:;,…][\"'”’)]*$", block) else block + "."


def speak_links(text: str) -> str:
    """E-mail addresses and file names as they are read out; of a URL only the host, since its path says nothing."""
    text = _EMAIL.sub(lambda m: f"{_address(m[1])} at {_dots(m[2])}", text)
    text = _URL.sub(lambda m: _dots(_host(m[0])), text)
    text = _DOMAIN.sub(lambda m: _dots(_host(m[0])), text)
    return _FILE_ENDING.sub(" dot ", text)


def _host(url: str) -> str:
    return re.split(r"[/?#:]", re.sub(r"^(?:https?://)?(?:[^/@\s]*@)?(?:www\.)?", "", url))[0]


def _dots(name: str) -> str:
    return name.replace(".", " dot ")


def _address(name: str) -> str:
    return _dots(name).replace("_", " underscore ").replace("-", " dash ").replace("+", " plus ")


def strip_unspeakable(text: str, kept: str) -> str:
    """Only letters, marks, digits, spaces and the characters of `kept`: emoji, dingbats and controls become spaces."""
    return "".join(c if c in kept or _is_speakable(c) else " " for c in text)


def _is_speakable(c: str) -> bool:
    # Variation selectors and the emoji keycap are marks to Unicode.
    return unicodedata.category(c)[0] in "LMN" and not ("\ufe00" <= c <= "\ufe0f" or c == "\u20e3")

"""Text as it is written made text as it is spoken."""

import re
import unicodedata

from csm_mlx.text.markup import speak_links, strip_markup, strip_unspeakable
from csm_mlx.text.numbers import full_stop, spell_numbers

_STRAIGHT = str.maketrans(
    dict.fromkeys("‘’‚‛ʼ´＇", "'")
    | dict.fromkeys("“”„‟«»＂", '"')
    | {
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "\u2011": "-",
        "\u2010": "-",
        "\u00ad": "",
        "\u200b": "",
        "\ufeff": "",
    }
)

_TITLES = {
    "Dr": "Doctor",
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Ms",
    "Prof": "Professor",
    "Gen": "General",
    "Sen": "Senator",
    "Rep": "Representative",
    "Gov": "Governor",
    "Lt": "Lieutenant",
    "Col": "Colonel",
    "Capt": "Captain",
    "Sgt": "Sergeant",
    "Rev": "Reverend",
    "Hon": "Honorable",
    "St": "Saint",
    "Mt": "Mount",
}
"""Before a capital letter."""
_BEFORE_NUMBERS = {
    "No": "number",
    "no": "number",
    "Nos": "numbers",
    "Fig": "Figure",
    "fig": "figure",
    "Eq": "Equation",
    "Sec": "Section",
    "sec": "section",
    "Ch": "Chapter",
    "ch": "chapter",
    "Vol": "Volume",
    "vol": "volume",
    "p": "page",
    "pp": "pages",
    "ca": "circa",
}
_ABBREVIATIONS = {
    "e.g": "for example",
    "E.g": "For example",
    "i.e": "that is",
    "I.e": "That is",
    "etc": "et cetera",
    "vs": "versus",
    "v": "versus",
    "cf": "compare",
    "approx": "approximately",
    "Approx": "Approximately",
    "dept": "department",
    "Dept": "Department",
    "est": "estimated",
    "Inc": "Incorporated",
    "Ltd": "Limited",
    "Corp": "Corporation",
    "Co": "Company",
    "Bros": "Brothers",
    "Jr": "Junior",
    "Sr": "Senior",
    "St": "Street",
    "Ave": "Avenue",
    "Blvd": "Boulevard",
    "Rd": "Road",
    "Ln": "Lane",
    "Hwy": "Highway",
    "Apt": "Apartment",
    "Jan": "January",
    "Feb": "February",
    "Aug": "August",
    "Sept": "September",
    "Oct": "October",
    "Nov": "November",
    "Dec": "December",
}


def _one_of(words: dict[str, str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_TITLE = re.compile(rf"\b({_one_of(_TITLES)})\.\s+(?=[A-Z]|and\b)")
_BEFORE_NUMBER = re.compile(rf"\b({_one_of(_BEFORE_NUMBERS)})\.\s*(?=[0-9])")
_ABBREVIATION = re.compile(rf"\b({_one_of(_ABBREVIATIONS)})\.(?![\w])")
_INITIALISM = re.compile(r"\b(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b)?|\b[A-Z][a-z]\.[A-Z]\.")
_SHORTHANDS = [
    (re.compile(rf"(?<![\w/]){pattern}", re.IGNORECASE), words)
    for pattern, words in [
        (r"w/o\b", "without"),
        (r"w/\s?(?=\w)", "with "),
        (r"and/or\b", "and or"),
        (r"he/she\b", "he or she"),
        (r"s/he\b", "she or he"),
        (r"n/a\b", "not applicable"),
    ]
]

_VULGAR = {
    "½": "one half",
    "¼": "one quarter",
    "¾": "three quarters",
    "⅓": "one third",
    "⅔": "two thirds",
    "⅛": "one eighth",
}
# Before numbers become words, since only digits tell what these mean.
_ARITHMETIC = [
    (re.compile(r"[~≈]\s?(?=[0-9])"), "about "),
    (re.compile(r"(?<=[0-9])(?:\s?\*\s?|\s×\s)(?=[0-9])"), " times "),
    (re.compile(r"(?<=[0-9])\s-\s(?=[0-9][^=]*=)"), " minus "),
]
_SYMBOLS_IN_PLACE = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\(s\)", "s"),
        (r"\b([A-Z])#", r"\1 sharp"),
        (r"(?<=\w)\+\+", " plus plus"),
        (r"#(?=\w)", " hashtag "),
        (r"(?<!\w)@(?=\w)", " at "),
        (r"\s@\s", " at "),
        (r"(?<=[\w)])\s?\^\s?(?=[\w(])", " to the power of "),
        (r"(?<=[\w)])²", " squared"),
        (r"(?<=[\w)])³", " cubed"),
        (r"\s?[-=]+>\s?|\s?[→⇒]\s?", " to "),
        (r"(?<=[A-Za-z])/(?=[A-Za-z])", " slash "),
    ]
]
_SYMBOLS = {
    "&": "and",
    "=": "equals",
    "+": "plus",
    "<": "less than",
    ">": "greater than",
    "≤": "at most",
    "≥": "at least",
    "≠": "is not",
    "≈": "about",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "√": "square root of",
    "∞": "infinity",
    "π": "pi",
    "%": "percent",
    "°": "degrees",
    "§": "section",
}

# In this order: pauses become commas and full stops, then doubled and misplaced punctuation goes.
_TIDYINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\s+", " "),
        (r"\.(?:\s?\.)+|…(?:\s?[….])+", "…"),
        (r"\s?…(?=\s?[?!,])", ""),
        (r"\s?…(?=[\"'](?:[\s,.?!]|$))", "."),
        (r"\s?…\s?(?=[\"']?[a-z])", ", "),
        (r"\s?…", ". "),
        (r"(?<=[^\W_])–(?=[^\W_])", "-"),
        (r"\s*(?:[—–―]|--+|(?<=\s)-(?=\s|$))\s*", ", "),
        (r"\s*;", ","),
        (r":(?=\s*[\"')]*\s*$)", "."),
        (r":(?=[\s\"'])", ","),
        (r"\s*[()\[\]{}]\s*", " , "),
        (r"[/|\\_*#~^<>=+`:]", " "),
        (r"\s+", " "),
        (r"\s+(?=[,.?!])", ""),
        (r",(?:[\s,]*,)+", ","),
        (r",\s*(?=[.?!])", ""),
        (r"([.?!])\s*,", r"\1"),
        (r"[!?]*\?[!?]*\.*", "?"),
        (r"!+\.*", "!"),
        (r"\.{2,}", "."),
        (r"(?<=[,?!])(?=[^\W\d_])", " "),
        (r"(?<!\w)'(?!\w)|\"\s*\"", ""),
    ]
]


def speakable(text: str, language: str = "en") -> str:
    """`text` as a voice can read it, on one line; empty when nothing in it can be spoken.

    Markdown, HTML, emoji, `[brackets]` and blocks of code go; curly quotes become straight ones, and dashes, ellipses,
    semicolons and parentheses pauses. In English (`language` "en") numbers, dates, times, money, units, symbols, links
    and abbreviations become words as well; acronyms and Roman numerals stay. Other languages keep their digits.
    """
    text = strip_markup(unicodedata.normalize("NFC", text).translate(_STRAIGHT))
    kept = ".,?!'\"- "
    if language == "en":
        text = _spell_symbols(spell_numbers(_expand(speak_links(text))))
    else:
        kept += "¿¡。、？！，%&€$£"
    text = _tidy(text)
    text = " ".join(strip_unspeakable(text, kept).split())
    text = re.sub(r"\s+(?=[,.?!])", "", text).strip(" ,").lstrip(".,?! ")
    return text if re.search(r"\w", text) else ""


def _expand(text: str) -> str:
    for pattern, words in _SHORTHANDS + _ARITHMETIC:
        text = pattern.sub(words, text)
    text = _TITLE.sub(lambda m: _TITLES[m[1]] + " ", text)
    text = _BEFORE_NUMBER.sub(lambda m: _BEFORE_NUMBERS[m[1]] + " ", text)
    text = _ABBREVIATION.sub(lambda m: _ABBREVIATIONS[m[1]] + full_stop(m), text)
    return _INITIALISM.sub(_initials, text)


def _initials(m: re.Match[str]) -> str:
    """`U.S.` as letters, but `3 p.m.` is a time."""
    if m[0].lower() in ("a.m.", "p.m."):
        return m[0]
    return " ".join(c.upper() for c in m[0] if c.isalpha()) + full_stop(m)


def _spell_symbols(text: str) -> str:
    for sign, words in _VULGAR.items():
        text = re.sub(rf"(?<=[a-z])\s?{sign}", f" and {words}", text).replace(sign, words)
    for pattern, replacement in _SYMBOLS_IN_PLACE:
        text = pattern.sub(replacement, text)
    for sign, words in _SYMBOLS.items():
        text = text.replace(sign, f" {words} ")
    return text


def _tidy(text: str) -> str:
    for pattern, replacement in _TIDYINGS:
        text = pattern.sub(replacement, text)
    return text

"""Numbers, and what stands beside them, as English words: dates, times, money, units, ordinals, ranges.

Each rule is a pattern and what becomes of it; they run in the order of `_RULES`, the particular before the general,
so that a later rule meets only the digits that no earlier one has read.
"""

import re
from collections.abc import Callable
from functools import cache

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
_AMOUNT = rf"{_NUMBER}(?:\s?[-–]\s?{_NUMBER})?"
_SIGN = r"(?P<sign>(?<![\w)\]%°])[-−](?=[0-9A-Z$€£¥₹]))?"
_MONTH_NAMES = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_MONTH_NAMES += ("November", "December")
_MONTHS = {name[:3]: name for name in _MONTH_NAMES}
_MONTH = "(?:" + "|".join(f"{name}|{short}" for short, name in _MONTHS.items()) + "|Sept)"
_DAY = r"(?:0?[1-9]|[12][0-9]|3[01])"
_YEAR = r"(?:1[0-9]{3}|20[0-9]{2})"
_AM_PM = r"(?:\s?([AaPp])(?:\.\s?[Mm]\.|[Mm]\b))"
_STARTER = re.compile(
    r"\s+(?:He|She|It|They|We|You|I|The|This|That|These|Those|There|Then|But|And|So|In|On|At|If|When|While|What|Who|Why"
    r"|How|My|Your|His|Her|Our|Their|Its|Yes|No|Not|After|Before|Now|Some|Many|Most|All|Every|Each|Here|As|For|However"
    r"|Let|Please|Is|Are|Was|Were|Do|Does|Did|Can|Could|Would|Will|Should)\b"
)
"""Words with a capital letter that begin a sentence rather than go on with a name, as `Army` does in `U.S. Army`."""
_MAGNITUDES = {"k": "thousand", "K": "thousand", "m": "million", "M": "million"}
_MAGNITUDES |= {"b": "billion", "B": "billion", "bn": "billion", "tn": "trillion"}
_MAGNITUDES |= {word: word for word in ("thousand", "million", "billion", "trillion")}
_MAGNITUDE = "(?:" + "|".join(sorted(_MAGNITUDES, key=len, reverse=True)) + r")\b"
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "sen", "sen"),
}
_CURRENCIES |= {"USD": _CURRENCIES["$"], "EUR": _CURRENCIES["€"], "GBP": _CURRENCIES["£"], "JPY": _CURRENCIES["¥"]}
_UNITS = {
    "kilometer": "km",
    "meter": "m",
    "centimeter": "cm",
    "millimeter": "mm",
    "square kilometer": "km² km2 km^2",
    "square meter": "m² m^2 sqm",
    "cubic meter": "m³ m^3",
    "mile": "mi",
    "yard": "yd",
    "kilogram": "kg",
    "gram": "g",
    "milligram": "mg",
    "pound": "lb lbs",
    "ounce": "oz",
    "liter": "l L",
    "milliliter": "ml mL",
    "hour": "h hr hrs",
    "minute": "min mins",
    "second": "s sec secs",
    "millisecond": "ms",
    "kilometer per hour": "km/h kph kmh",
    "mile per hour": "mph",
    "meter per second": "m/s",
    "kilobyte": "kB KB",
    "megabyte": "MB",
    "gigabyte": "GB",
    "terabyte": "TB",
    "megabit per second": "Mbps Mbit/s",
    "watt": "W",
    "kilowatt": "kW",
    "kilowatt hour": "kWh",
    "volt": "V",
    "decibel": "dB",
    "pixel": "px",
    "degree": "°",
    "degree Celsius": "°C",
    "degree Fahrenheit": "°F",
}
_INVARIANT = {"hertz": "Hz", "kilohertz": "kHz", "megahertz": "MHz", "gigahertz": "GHz", "percent": "%"}
_PER = {"mo": "month", "yr": "year", "h": "hour", "hr": "hour", "s": "second", "sec": "second", "min": "minute"}
_PER |= {w: w for w in ("second", "minute", "hour", "day", "night", "week", "month", "year", "person", "user", "kg")}
_PER_UNIT = "(?:/(?P<per>" + "|".join(sorted(_PER, key=len, reverse=True)) + r")\b)?"


def _plural(unit: str) -> str:
    if unit.startswith("degree"):
        return "degrees" + unit.removeprefix("degree")
    head, per, tail = unit.partition(" per ")
    return f"{head}s{per}{tail}"


_UNIT_WORDS = {sign: (unit, _plural(unit)) for unit, signs in _UNITS.items() for sign in signs.split()}
_UNIT_WORDS |= {"ft": ("foot", "feet")} | {sign: (unit, unit) for unit, sign in _INVARIANT.items()}
_UNIT = "|".join(re.escape(sign) for sign in sorted(_UNIT_WORDS, key=len, reverse=True))


@cache
def _words(n: int, to: str = "cardinal") -> str:
    from num2words import num2words

    return num2words(n, to=to).replace(",", "")


def _digits(text: str) -> str:
    return " ".join(_words(int(c)) for c in text if c.isdigit())


def _number(text: str) -> str:
    """`1,234.56` in words; long or zero-led ones digit by digit, as telephone numbers and names are read."""
    whole, point, decimals = text.replace(",", "").partition(".")
    by_digit = len(whole) > 12 or (len(whole) > 1 and whole[0] == "0")
    words = _digits(whole) if by_digit else _words(int(whole))
    return f"{words} point {_digits(decimals)}" if point else words


def _amount(text: str) -> str:
    return " to ".join(_number(part.strip()) for part in re.split("[-–]", text))


def _year(text: str) -> str:
    return _words(int(text), "year")


def _day(text: str) -> str:
    return _words(int(text), "ordinal")


def _date(year: str | None, month: int | str, day: str, until: str | None = None) -> str:
    name = list(_MONTHS.values())[month - 1] if isinstance(month, int) else _MONTHS[month[:3]]
    words = f"{name} {_day(day)}" + (f" to {_day(until)}" if until else "")
    return f"{words}, {_year(year)}" if year else words


def _iso_date(m: re.Match[str]) -> str:
    return _date(m[1], int(m[2]), m[3])


def _slash_date(m: re.Match[str]) -> str:
    """The American order, unless the first number can be no month."""
    first, second, year = int(m[1]), int(m[2]), m[3]
    month, day = (second, first) if first > 12 else (first, second)
    return _date(year, month, str(day)) if month <= 12 else m[0]


def full_stop(m: re.Match[str]) -> str:
    """The dot of `p.m.` or `Inc.` once more, where it also ended the sentence."""
    after = m.string[m.end() :]
    ends = not after.strip("\"')] ") or _STARTER.match(after)
    return "." if m[0].endswith(".") and ends else ""


def _time(m: re.Match[str]) -> str:
    hour, minute, second, half = int(m[1]), int(m[2]), m[3], m[4]
    minutes = "" if minute == 0 else f" oh {_words(minute)}" if minute < 10 else f" {_words(minute)}"
    if second:
        return f"{_words(hour)}{minutes or ' zero'} and {_amount(str(int(second)))} seconds"
    if half:
        return f"{_words(hour)}{minutes} {half.upper()}M" + full_stop(m)
    if minutes:
        return _words(hour) + minutes
    return "midnight" if hour == 0 else f"{_words(hour)} o'clock" if hour <= 12 else f"{_words(hour)} hundred"


def _hour(m: re.Match[str]) -> str:
    return f"{_words(int(m[1]))} {m[2].upper()}M" + full_stop(m)


def _phone(m: re.Match[str]) -> str:
    groups = ", ".join(_digits(group) for group in re.findall("[0-9]+", m[0]))
    return f"plus {groups}" if m[0].startswith("+") else groups


def _money(m: re.Match[str]) -> str:
    amount, magnitude = m["amount"], m["magnitude"]
    one, many, one_hundredth, hundredths = _CURRENCIES[m["currency"]]
    whole, _, cents = amount.replace(",", "").partition(".")
    if magnitude:
        words = f"{_amount(amount)} {_MAGNITUDES[magnitude]} {many}"
    elif whole.isdigit() and re.fullmatch("[0-9]{2}", cents):
        parts = [f"{_number(whole)} {one if int(whole) == 1 else many}"] if int(whole) else []
        parts += [f"{_words(int(cents))} {one_hundredth if cents == '01' else hundredths}"] if int(cents) else []
        words = " and ".join(parts) or f"zero {many}"
    else:
        words = f"{_amount(amount)} {one if amount == '1' else many}"
    return _signed(m, words)


def _unit(m: re.Match[str]) -> str:
    return _signed(m, f"{_amount(m['amount'])} {_UNIT_WORDS[m['unit']][0 if m['amount'] == '1' else 1]}")


def _signed(m: re.Match[str], words: str) -> str:
    return ("minus " if m["sign"] else "") + words + (f" per {_PER[m['per']]}" if m["per"] else "")


def _height(m: re.Match[str]) -> str:
    return f"{_words(int(m[1]))} foot {_words(int(m[2]))}"


def _decade(m: re.Match[str]) -> str:
    """`1990s`; `90s` after an article or an apostrophe, since it may be seconds too."""
    words = _year(m[2]) if len(m[2]) == 4 else _words(int(m[2]))
    return m[1].removeprefix("'") + (words[:-1] + "ies" if words.endswith("y") else words + "s")


def _fraction(m: re.Match[str]) -> str:
    above, below = int(m[1]), int(m[2])
    if (above, below) == (24, 7):
        return "twenty-four seven"
    if above == below:
        return f"{_words(above)} {_words(below)}"
    if not 0 < above < below <= 10:
        return f"{_words(above)} over {_words(below)}"
    name = {2: "half", 4: "quarter"}.get(below) or _words(below, "ordinal")
    return f"{_words(above)} {name}" + ("s" if above > 1 else "")


def _range(m: re.Match[str]) -> str:
    years = re.fullmatch(_YEAR, m[1]) and re.fullmatch(rf"{_YEAR}|[0-9]{{2}}", m[2])
    return " to ".join(_year(g) if years and len(g) == 4 else _number(g) for g in m.groups())


_Reading = Callable[[re.Match[str]], str]
_RULES: list[tuple[re.Pattern[str], _Reading]] = [
    (re.compile(pattern), reading)
    for pattern, reading in [
        (r"([$€£¥₹])(?=\.[0-9])", lambda m: m[1] + "0"),
        (rf"([$€£¥₹])({_NUMBER})\s?[-–]\s?\1(?=[0-9])", lambda m: f"{m[1]}{m[2]}-"),
        (rf"(?<![\w.])({_NUMBER})\s?({_UNIT})\s?[-–]\s?(?={_NUMBER}\s?\2(?!\w))", lambda m: f"{m[1]}-"),
        (rf"\b({_YEAR})-(0[1-9]|1[0-2])-({_DAY})(?!\w)", _iso_date),
        (rf"(?<![\w/])({_DAY})/({_DAY})/({_YEAR})(?![\w/])", _slash_date),
        (rf"(?<![\w.])({_DAY})\.(0?[1-9]|1[0-2])\.({_YEAR})(?!\w)", lambda m: _date(m[3], int(m[2]), m[1])),
        (
            rf"\b({_MONTH})\b\.?\s+({_DAY})(?:st|nd|rd|th)?(?:\s?[-–]\s?({_DAY}))?(?:,?\s+({_YEAR}))?(?![\w:%]|[.,][0-9])",
            lambda m: _date(m[4], m[1], m[2], m[3]),
        ),
        (
            rf"\b(?:the\s+)?({_DAY})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})\b(?:\.?,?\s+({_YEAR})(?!\w))?",
            lambda m: f"the {_day(m[1])} of {_MONTHS[m[2][:3]]}" + (f", {_year(m[3])}" if m[3] else ""),
        ),
        (r"\+[0-9]{1,3}(?:[ .-]?\(?[0-9]{2,}\)?)(?:[ .-]?[0-9]{2,})*(?![\w.])|\+[0-9]{7,}", _phone),
        (r"(?<![\w-])(?:1[ .-])?\(?[0-9]{3}\)?[ .-][0-9]{3}[.-][0-9]{4}(?![\w-])", _phone),
        (r"(?<![\w-])[0-9]{3}-[0-9]{4}(?![\w-])", _phone),
        (rf"(?<=[0-9mM])\s?[-–]\s?(?=[0-9]{{1,2}}(?::[0-9]{{2}}|{_AM_PM}))", lambda _: " to "),
        (rf"(?<![\w:.])([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?{_AM_PM}?(?![\w:])", _time),
        (rf"(?<![\w:.])([01]?[0-9]){_AM_PM}", _hour),
        (r"(?<![\w:])([0-9]+):([0-9]+)(?![\w:])", _range),
        (r"(?<![\w.])v?([0-9]+(?:\.[0-9]+){2,})(?![\w])", lambda m: " point ".join(map(_number, m[1].split(".")))),
        (r"""\b([1-9])['′]\s?([0-9]|1[01])(?:"|″|''|\b)""", _height),
        (
            rf"{_SIGN}(?:(?:\b(?:US|CA?|AU?))(?=\$))?(?P<currency>[$€£¥₹])\s?(?P<amount>{_AMOUNT})"
            rf"(?:\s?(?P<magnitude>{_MAGNITUDE}))?{_PER_UNIT}",
            _money,
        ),
        (
            rf"{_SIGN}(?<![\w.])(?P<amount>{_AMOUNT})(?:\s?(?P<magnitude>{_MAGNITUDE}))?"
            rf"\s?(?P<currency>[€£¥₹]|(?:USD|EUR|GBP|JPY)\b){_PER_UNIT}",
            _money,
        ),
        (
            r"((?:\b(?:[Tt]he|[Mm]y|[Hh]is|[Hh]er|[Tt]heir|[Oo]ur|[Ee]arly|[Ll]ate|[Mm]id|[Aa]nd)[ -])|(?<!\w)')"
            r"([2-9]0)s\b",
            _decade,
        ),
        (r"\b()((?:1[0-9]|20)[0-9]0)s\b", _decade),
        (rf"{_SIGN}(?<![\w.])(?P<amount>{_AMOUNT})\s?(?P<unit>{_UNIT})(?!\w)(?:\.(?=\s+[a-z]))?{_PER_UNIT}", _unit),
        (r"\b([0-9]{1,12})(?:st|nd|rd|th)\b", lambda m: _words(int(m[1]), "ordinal")),
        (r"(?<![\w/])([0-9]{1,12})/([0-9]{1,12})(?![\w/])", _fraction),
        (rf"#(?={_NUMBER})", lambda _: "number "),
        (rf"(?<![\w.-])({_NUMBER})\s?[-–]\s?({_NUMBER})(?![\w-])", _range),
        (
            rf"(?<![\w.])({_NUMBER})[eE]([-−]?)\+?([0-9]{{1,3}})\b",
            lambda m: f"{_number(m[1])} times ten to the power of {'minus ' if m[2] else ''}{_words(int(m[3]))}",
        ),
        (rf"(?<![\w.])({_NUMBER})\s?[x×]\s?(?={_NUMBER})", lambda m: f"{_number(m[1])} by "),
        (rf"(?<![\w.])({_NUMBER})[x×](?!\w)", lambda m: f"{_number(m[1])} times"),
        (rf"(?<![\w.])({_NUMBER})([kMB])\b", lambda m: f"{_number(m[1])} {_MAGNITUDES[m[2]]}"),
        (r"(?<![\w.,])(?:1[1-9][0-9]{2}|20[0-9]{2})(?![\w]|[.,][0-9])", lambda m: _year(m[0])),
        (rf"(?<![\w)\]%°])[-−](?={_NUMBER}|\.[0-9])", lambda _: "minus "),
        (rf"(?<!\w)\+(?={_NUMBER})", lambda _: "plus "),
        (r"(?<![\w.])\.([0-9]+)", lambda m: f"point {_digits(m[1])}"),
        # What is left touches letters perhaps: mp3, GPT-4, B2B.
        (rf"(?<=[^\W\d_])-?(?={_NUMBER})", lambda _: " "),
        (rf"(?<![0-9])({_NUMBER})(?=[^\W\d_])", lambda m: f"{_number(m[1])} "),
        (_NUMBER, lambda m: _number(m[0])),
    ]
]


def spell_numbers(text: str) -> str:
    """English `text` with every number in words. Roman numerals are left alone."""
    for pattern, reading in _RULES:
        text = pattern.sub(reading, text)
    return text

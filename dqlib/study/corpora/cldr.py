"""The embedded translation corpus: phrases that Babel renders from CLDR, in English and in other languages.

The Unicode Common Locale Data Repository says how each language writes dates, intervals, durations, amounts and lists,
and how it names territories, languages, currencies and units: grammar included, since Romanian writes "21 de lei"
and "19 lei". A phrase is drawn once and rendered twice, so there are as many exact pairs as one asks for.

* ``group`` is the combination that a phrase is made of, such as the set of names of a list. Its hash decides the
  split, and no English phrase of one split occurs in another.
* Some names, chosen by a hash, are kept out of all of that: ``test_unseen`` is made of them alone.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache

from babel import Locale, UnknownLocaleError, dates, lists, numbers, units

from dqlib.errors import InputError
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.splits import SPLITS, TEST_PERCENT, UNSEEN, hundredth_of, split_of
from dqlib.study.params import settings as S
from dqlib.study.params.schema import each

#: Of a hundred names, this many are never seen in training.
UNSEEN_PERCENT = 8

#: Phrases drawn for each that is wanted before the corpus is refused as too large (some kinds have few).
MOST_DRAWS = 20

#: Kinds of names; lists are made of the first three.
NAME_KINDS = ("territories", "languages", "currencies", "units")

#: Skeletons of date intervals that CLDR has in every language here, by what they show.
INTERVALS = ("yMMMd", "yMMMEd", "MMMd", "yMMMM")

#: Units with a number, by CLDR's names; those of time are the words of durations, never unseen.
UNITS = {
    "area": "acre hectare square-centimeter square-foot square-inch square-kilometer square-meter square-mile",
    "digital": "bit byte gigabit gigabyte kilobit kilobyte megabit megabyte petabyte terabit terabyte",
    "electric": "ampere milliampere ohm volt",
    "energy": "calorie electronvolt joule kilocalorie kilojoule kilowatt-hour",
    "force": "newton pound-force",
    "frequency": "gigahertz hertz kilohertz megahertz",
    "graphics": "dot-per-centimeter dot-per-inch megapixel pixel pixel-per-inch",
    "length": "astronomical-unit centimeter decimeter foot inch kilometer light-year meter micrometer mile millimeter "
    "nanometer nautical-mile parsec yard",
    "light": "lumen lux solar-luminosity",
    "mass": "carat gram kilogram microgram milligram ounce ounce-troy pound solar-mass tonne",
    "power": "gigawatt horsepower kilowatt megawatt milliwatt watt",
    "pressure": "atmosphere bar hectopascal kilopascal megapascal millibar pascal",
    "speed": "kilometer-per-hour knot meter-per-second mile-per-hour",
    "temperature": "celsius fahrenheit kelvin",
    "volume": "barrel bushel centiliter cubic-centimeter cubic-foot cubic-inch cubic-kilometer cubic-meter cubic-mile "
    "cup deciliter drop fluid-ounce gallon hectoliter liter megaliter milliliter pinch pint quart tablespoon teaspoon",
}


@dataclass(frozen=True, slots=True)
class Phrase:
    """Something to say: ``render`` gives its words in a locale, ``group`` the combination that it is made of."""

    group: str
    render: Callable[[Locale], str]


@cache
def locale(code: str) -> Locale:
    """The locale of a language.

    Raises:
        InputError: CLDR has none.
    """
    try:
        return Locale.parse(code)
    except (UnknownLocaleError, ValueError):
        raise InputError("corpus.languages", code, "the code of a locale that CLDR has: ro, de, pt_BR") from None


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """``limit`` phrases in three splits, and as many with unseen names as a test split has; each once.

    Raises:
        InputError: CLDR lacks a language, or there are not so many phrases.
    """
    each(corpus, "languages", locale, "corpus.")
    splits: dict[str, list[Row]] = {split: [] for split in (*SPLITS, UNSEEN)}
    split_with: dict[str, str] = {}  # of each English text, so that none is in two splits
    assert corpus.limit is not None  # the parameters are checked: 'cldr' needs it
    unseen = corpus.limit * TEST_PERCENT // 100
    for wanted, of_unseen in ((corpus.limit, False), (unseen, True)):
        seen: set[tuple[str, str]] = set()
        drawn = phrases(corpus.languages, corpus.seed, of_unseen)
        for row in itertools.islice(drawn, MOST_DRAWS * wanted):
            split = UNSEEN if of_unseen else split_of(row["group"])
            key = row["language"], row["source"]
            if key not in seen and split_with.setdefault(row["source"], split) == split:
                seen.add(key)
                splits[split].append(row)
            if len(seen) == wanted:
                break
        else:
            raise InputError("corpus.limit", corpus.limit, "fewer: there are not so many different phrases")
    return splits


def unpaired(corpus: S.Corpus) -> Iterator[Row]:
    """Endless phrases of the training split in English, drawn from another seed; some are the corpus's own."""
    for row in phrases(corpus.languages, corpus.seed + 1):
        if split_of(row["group"]) == "train":
            del row["target"]
            yield row


def phrases(languages: list[str], seed: int, unseen: bool = False) -> Iterator[Row]:
    """Endless rows with ``group``, ``language``, ``source`` (English) and ``target``, languages in turn.

    The same seed gives the same rows. The ``unseen`` are phrases with names alone, of those that are otherwise left
    out.

    Raises:
        InputError: CLDR lacks a language, or gives it an empty phrase.
    """
    known = {kind: names(kind, unseen, tuple(languages)) for kind in NAME_KINDS}
    draw = _Draw(random.Random(f"{seed} {unseen}"), known)
    kinds = [_amount, _measure, _list] if unseen else [_date, _interval, _duration, _amount, _measure, _list]
    while True:
        for code in languages:
            phrase = draw.order.choice(kinds)(draw)
            yield {
                "group": phrase.group,
                "language": code,
                "source": _rendered(phrase, "en"),
                "target": _rendered(phrase, code),
            }


@cache
def names(kind: str, unseen: bool, languages: tuple[str, ...]) -> list[str]:
    """Codes of all names of a kind that every language has: those that training sees, or those that it does not.

    Codes of two letters (currencies: three) whose English name is no other's and explains nothing in parentheses.

    Raises:
        InputError: CLDR lacks a language, or has hardly any names in it.
    """
    if kind == "units":
        codes = [f"{group}-{unit}" for group, text in UNITS.items() for unit in text.split()]
    else:
        table = getattr(locale("en"), kind)
        letters = 3 if kind == "currencies" else 2
        first = {name: code for code, name in sorted(table.items(), reverse=True)}
        codes = sorted(
            code for name, code in first.items() if len(code) == letters and code.isalpha() and "(" not in name
        )
        for language in languages:
            codes = [code for code in codes if code in getattr(locale(language), kind)]
            if len(codes) < 100:
                raise InputError("corpus.languages", language, f"locales in which CLDR names most {kind}")
    return [code for code in codes if (hundredth_of(code) < UNSEEN_PERCENT) == unseen]


@dataclass(frozen=True, slots=True)
class _Draw:
    """Where phrases are drawn from: chance, and the codes of the names of each kind."""

    order: random.Random
    names: dict[str, list[str]]


def _rendered(phrase: Phrase, language: str) -> str:
    """The phrase in a language, with plain spaces for CLDR's thin and hard ones."""
    try:
        text = " ".join(phrase.render(locale(language)).split())
    except (KeyError, ValueError):
        text = ""
    if not text:
        raise InputError("corpus.languages", language, f"a locale that CLDR has words for (it has none for a "
                         f"{phrase.group.split()[0]})")  # fmt: skip
    return text


def _date(draw: _Draw) -> Phrase:
    day, style = _day(draw.order), draw.order.choice(("full", "long", "medium"))
    if style == "medium" and day.month == 5:
        style = "long"  # "May 5, 2026" is both in English, and not in German
    return Phrase(f"date {day}", lambda where: dates.format_date(day, style, where))


def _interval(draw: _Draw) -> Phrase:
    skeleton = draw.order.choice(INTERVALS)
    start = _day(draw.order)
    end = start + timedelta(days=round(math.exp(draw.order.uniform(0, 7))))
    if skeleton == "MMMd":  # the year is not shown: two days of one year
        start, end = sorted(each.replace(year=2001, day=min(each.day, 28)) for each in (start, end))
    if skeleton == "yMMMM":
        start, end = start.replace(day=1), end.replace(day=1)
    group = f"interval {start} {end}"
    return Phrase(group, lambda where: dates.format_interval(start, end, skeleton, locale=where))


def _duration(draw: _Draw) -> Phrase:
    delta = timedelta(seconds=round(math.exp(draw.order.uniform(0, 21.5))))
    sign = draw.order.choice((-1, 0, 1))
    # Babel rounds: the English words, not the number of seconds, is the combination.
    group = f"duration {dates.format_timedelta(delta, locale='en')}"
    if not sign:
        return Phrase(group, lambda where: dates.format_timedelta(delta, locale=where))
    return Phrase(group, lambda where: dates.format_timedelta(sign * delta, add_direction=True, locale=where))


def _amount(draw: _Draw) -> Phrase:
    code, number = draw.order.choice(draw.names["currencies"]), _number(draw.order)

    def render(where: Locale) -> str:
        return numbers.format_currency(number, code, locale=where, format_type="name", currency_digits=False)

    return Phrase(f"amount {code} {number}", render)


def _measure(draw: _Draw) -> Phrase:
    unit, number = draw.order.choice(draw.names["units"]), _number(draw.order)
    return Phrase(f"measure {unit} {number}", lambda where: units.format_unit(number, unit, "long", locale=where))


def _list(draw: _Draw) -> Phrase:
    kind, style = draw.order.choice(NAME_KINDS[:3]), draw.order.choice(("standard", "or"))
    codes = draw.order.sample(draw.names[kind], draw.order.choice((2, 3, 4)))
    group = f"{kind} {' '.join(sorted(codes))}"
    return Phrase(group, lambda where: lists.format_list([getattr(where, kind)[c] for c in codes], style, where))


def _day(order: random.Random) -> date:
    return date(1900, 1, 1) + timedelta(days=order.randrange(200 * 365))


def _number(order: random.Random) -> int | float:
    """Small, middle, large or with one decimal digit."""
    return order.choice(
        (order.randint(1, 30), order.randint(31, 999), order.randint(1000, 99_999), order.randint(11, 9999) / 10)
    )

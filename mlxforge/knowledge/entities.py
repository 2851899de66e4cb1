"""What a document is about: names, headings and phrases that come again, found by their form, without a model.

The form is that of languages with capital letters and spaces between words. Stop words are known for English, German, French
and Spanish; a model (``--entities model``) needs neither.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
LINKS = frozenset("of the de del der des di da du la le los las van von und y et".split())
STOP = frozenset(
    (
        "a an the and or but if then else so as at by for from in into of off on onto out over to under up with without "
        "about after again against all also any are be because been before being between both can could did do does doing "
        "down during each few further had has have having he her here hers him his how i is it its just me more most my no "
        "nor not now once only other our own same she should some such than that their them there these they this those "
        "through too until very was we were what when where which while who whom why will would you your may must shall "
        "der die das den dem des ein eine einer eines einem einen und oder aber wenn dann als auch auf aus bei bis durch "
        "für gegen in im ist sind war waren wird werden mit nach nicht noch nur ob ohne seit sich sie so über um unter von "
        "vor wie wir zu zum zur er es ich kein keine sein seine ihr ihre "
        "le la les un une des du de et ou mais si que qui dans par pour sur avec sans est sont était ce cette ces il elle "
        "ils elles on nous vous se ne pas plus son sa ses leur au aux "
        "el los las unos unas y o pero si no que en por para con sin sobre es son era fue este esta estos estas su sus se lo al"
    ).split()
)
NUMBERED = re.compile(r"^(?:[\divx]+[.)]|\d+(?:\.\d+)*)\s+|^#+\s*", re.IGNORECASE)
OPENS = re.compile(r"(?:\A|[.!?:;…]['\"”’)\]]*\s+|\n\s*|[\"“”'‘(\[*#>|-]\s*)$")
REPEATED = 3  # times that a phrase without capitals must occur
LONGEST = 6  # words of an entity


@dataclass(frozen=True)
class Entity:
    """Something a document speaks of, as the document writes it, and how often each of its chunks names it."""

    name: str
    mentions: tuple[tuple[int, int], ...]  # (index of the chunk, times)

    @property
    def times(self) -> int:
        """Mentions in all chunks."""
        return sum(count for _, count in self.mentions)

    @property
    def chunks(self) -> frozenset[int]:
        """The chunks that name it."""
        return frozenset(index for index, _ in self.mentions)


def pattern(name: str) -> re.Pattern[str]:
    """Finds a name whatever its letters' case and the white space in it; not inside another word."""
    words = r"\s+".join(re.escape(word) for word in name.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def entities(chunks: Sequence[tuple[int, str, str]], most: int) -> list[Entity]:
    """The entities of a document, the most named first.

    Args:
        chunks: (index, text, path of headings) in order.
    """
    text = "\n\n".join(text for _, text, _ in chunks)
    headings = [_title(part) for _, _, path in chunks for part in path.split(" > ") if part]
    return known([*names(text), *headings, *phrases(text)], chunks, most)


def known(found: Iterable[str], chunks: Sequence[tuple[int, str, str]], most: int) -> list[Entity]:
    """Those of the names that the document has, the most named first; one that occurs only inside longer ones is left out."""
    spelled: dict[str, str] = {}
    for name in found:
        plain = " ".join(name.split())
        if len(plain) > 1 and len(plain.split()) <= LONGEST:
            spelled.setdefault(plain.casefold(), plain)
    # The longest first: what they take is not counted again.
    order = sorted(spelled.values(), key=lambda name: (-len(name), name))
    left = [text for _, text, _ in chunks]
    counted = []
    for name in order:
        finds, mentions = pattern(name), []
        for place, (index, _, _) in enumerate(chunks):
            left[place], count = finds.subn("\x00", left[place])
            if count:
                mentions.append((index, count))
        if mentions:
            counted.append(Entity(name, tuple(mentions)))
    counted.sort(key=lambda one: (-one.times, min(one.chunks), one.name))
    return counted[:most]


def names(text: str) -> list[str]:
    """Runs of capitalised words, in the order of the text, each once.

    A word at the beginning of a sentence counts where nothing says that it is only the sentence's: it is never in small
    letters, and stands with a capital inside a sentence too or before a word that does. It does not before a known name.
    """
    words = list(WORD.finditer(text))
    small = {word[0] for word in words if word[0].islower()}
    inside = {word[0] for word in words if word[0][0].isupper() and not _begins(text, word.start())}
    runs = list(_runs(text, words))
    alone = {_joined(run) for run in runs if not _begins(text, run[0].start())}
    found: dict[str, None] = {}
    for run in runs:
        if _begins(text, run[0].start()) and (_only_begins(run, small, inside) or _joined(run[1:]) in alone):
            run = run[1:]
        while run and run[0][0].lower() in STOP:
            run = run[1:]
        while run and run[-1][0].lower() in STOP:
            run = run[:-1]
        if run and run[0][0][0].isupper() and len(run[0][0]) > 1:
            found[_joined(run)] = None
    return list(found)


def _joined(run: Sequence[re.Match[str]]) -> str:
    return " ".join(word[0] for word in run)


def _begins(text: str, place: int) -> bool:
    return bool(OPENS.search(text[max(0, place - 6) : place])) if place else True


def _only_begins(run: Sequence[re.Match[str]], small: set[str], inside: set[str]) -> bool:
    first = run[0][0]
    return first.lower() in small or first.lower() in STOP or (first not in inside and len(run) == 1)


def _runs(text: str, words: Sequence[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """Capitalised words with only spaces between them; ``of`` and the like may stand between two."""
    run: list[re.Match[str]] = []
    for word in words:
        joined = bool(run) and text[run[-1].end() : word.start()].strip(" \t") == "" and word.start() > run[-1].end()
        # One line end inside a name is a wrapped line.
        joined = joined or (bool(run) and re.fullmatch(r" *\n *", text[run[-1].end() : word.start()]) is not None)
        if (word[0][0].isupper() and joined) or (word[0] in LINKS and joined):
            run.append(word)
        else:
            yield from _capital(run)
            run = [word] if word[0][0].isupper() else []
    yield from _capital(run)


def _capital(run: list[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    while run and not run[-1][0][0].isupper():
        run = run[:-1]
    if run:
        yield run


def phrases(text: str) -> list[str]:
    """Two or three words in small letters that stand together three times or more; no stop word among them."""
    counts: Counter[tuple[str, ...]] = Counter()
    for part in re.split(r"[^\w\s'’-]|\n\s*\n", text):
        words = WORD.findall(part)
        for size in (2, 3):
            for place in range(len(words) - size + 1):
                phrase = words[place : place + size]
                if all(word.islower() and word not in STOP and len(word) > 2 for word in phrase):
                    counts[tuple(phrase)] += 1
    often = {phrase: count for phrase, count in counts.items() if count >= REPEATED}
    longer = {(part, count) for phrase, count in often.items() if len(phrase) == 3 for part in (phrase[:2], phrase[1:])}
    return [" ".join(phrase) for phrase, count in often.items() if (phrase, count) not in longer]


def _title(heading: str) -> str:
    return NUMBERED.sub("", heading).strip(" :.*_`")

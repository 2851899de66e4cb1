"""The language of a text, by its script or its commonest words; none where that is not clear."""

from __future__ import annotations

import re
from collections import Counter

SAMPLE = 5_000  # characters
LEAST = 20  # words known of it, in the sample
LEAD = 1.5  # times as many as of the next language
# Words that are common in one language and rare in its neighbours.
WORDS = {
    "cs": "je jsou který která jako také není byl podle nebo může při jeho však",
    "da": "og er ikke det til af som har blev også være eller deres efter",
    "de": "der die das und ist nicht mit ein eine für auf werden auch sich dem den bei oder wird",
    "en": "the and of to is that for with are this be by from which have not was you it as",
    "es": "el los las una por con para como más pero sus está son también este entre",
    "fi": "ja on ei että se oli ovat myös mutta joka kun tai voi mukaan",
    "fr": "le les des est une dans pour que qui sur pas avec sont par plus cette vous aux",
    "hu": "az és hogy nem egy is meg vagy csak volt már mint amely ez",
    "it": "il che della di per non una sono gli con come più nel alla anche delle",
    "nl": "de het een van en niet zijn dat voor met worden ook aan deze wordt naar bij",
    "pl": "się jest nie jak przez oraz dla może które tego lub być także po",
    "pt": "os uma não para com como mais dos das são também pelo ser pela está você",
    "ro": "și este nu care pentru sunt din cu mai fost sau această poate prin",
    "sv": "och att det som är inte för med den har till av ett kan eller också",
    "tr": "ve bir bu için ile olarak daha olan gibi çok değil veya kadar her",
}
SCRIPTS = {
    "ja": "[\u3040-\u30ff]",
    "ko": "[\uac00-\ud7af]",
    "zh": "[\u4e00-\u9fff]",
    "el": "[\u0370-\u03ff]",
    "he": "[\u0590-\u05ff]",
    "ar": "[\u0600-\u06ff]",
    "hi": "[\u0900-\u097f]",
    "th": "[\u0e00-\u0e7f]",
    "uk": "[ґєіїҐЄІЇ]",
    "ru": "[\u0400-\u04ff]",
}
SHARE = {"ja": 0.1, "uk": 0.02}  # of all letters; kana stand between kanji, and only some Ukrainian letters are its own
LANGUAGES = {
    word: [name for name, words in WORDS.items() if word in words.split()] for words in WORDS.values() for word in words.split()
}
LETTER = re.compile(r"[^\W\d_]")
WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> str | None:
    """ISO 639-1 of what the beginning of ``text`` is written in."""
    sample = text[:SAMPLE]
    if not sample.isascii():
        letters = len(LETTER.findall(sample))
        for name, letter in SCRIPTS.items():
            if letters and len(re.findall(letter, sample)) >= SHARE.get(name, 0.3) * letters:
                return name
    seen = Counter(WORD.findall(sample.lower()))
    counts = Counter[str]()
    for word in seen.keys() & LANGUAGES.keys():
        counts.update(dict.fromkeys(LANGUAGES[word], seen[word]))
    (first, most), (_, next_most) = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    return first if most >= LEAST and most >= LEAD * next_most else None

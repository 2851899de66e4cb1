"""Texts that tell tokenizers apart: what one word splitter takes as a whole, another cuts."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

# Kind -> pieces. A text joins pieces of several kinds, so that each kind meets each other.
PIECES: dict[str, tuple[str, ...]] = {
    "words": ("the", " river", "Hello", " World", "mill", " x", "a", " I", "CamelCase", " HTTPServer", "iPhone", " McDonald"),
    "contractions": ("it's", "IT'S", " don't", "WE'LL", " they've", "I'm", "'re", "'D", " o'clock", "'tis", "l'été",
        "'S", "’s"),
    "newlines": ("\n", "\n\n", "\r\n", "\n \n", " \n", "\n\t", "\r", "\n\n\n", "\t\n", "\n  \n\n ", ".\n", "!\n\n", "/\n"),
    "spaces": (" ", "  ", "   ", "    ", "\t", "\t\t", " \t ", "        ", "\u00a0", "\u3000", "\u2003", "\v", "\f",
        "\u2028"),
    "punctuation": (".", ",", "!?", "...", " --", "(", ")", " \"", "#", "$", "%", "&&", " ==", "://", "_", "[x]",
        "{}", "«", "…", "“", "—"),
    "symbols": ("€", " £", "+", "<", ">=", "^", "~", "|", "`", "©", "→", "√", "½", "²", "Ⅷ", "№", "°"),
    "code": ("def f(x):\n    return x[0]", "if (a != b) {\n\t\ti++;\n}", "x = {'k': 1_000}", "<div class=\"a\">",
        "\\n\\t", "--flag=2", "0xFF"),
    "urls": ("https://ex.org/a?b=1&c=%20", "me@mail.co.uk", "/usr/lib/x.so.1", "C:\\dir\\f.txt", "192.168.0.1", "www.a-b.de"),
    "emoji": ("😀", " 👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "☃", "🏳️‍🌈", "1️⃣"),
    "chinese": ("你好", "世界。", "，", "一龥", "「漢字」", " 中文", "3月", "２０２４年", "！"),
    "japanese": ("こんにちは", "カタカナ", "ー", "です。", "ｶﾅ", "々"),
    "korean": ("안녕", " 하세요", "가힣", "ㄱㅏ"),
    "cyrillic": ("Привет", " мир", "ЁЖ", "Україна"),
    "greek": ("Ελλάδα", " λόγος", "ΣΊΣΥΦΟΣ"),
    "arabic": ("مرحبا", " بالعالم", "،", "٣٤٥", "لَا"),
    "hindi": ("नमस्ते", " दुनिया", "।", "१२३"),
    "thai": ("สวัสดี", " ครับ", "๑๒"),
    "hebrew": ("שלום", " עולם", "בְּרֵ"),
    "latin": ("é", "Ünïcödé", " ÉCOLE", "straße", "İstanbul", "ñandú", "Łódź", "œuvre", "ŉ", "ǅ", "Đặng"),
    "marks": ("e\u0301", "A\u030a", "n\u0303o", "\u0301", " \u0308", "o\u0302\u0323"),
    "odd": ("\u200b", "\u200d", "\u200e", "\ufeff", "\u00ad", "\ufffd", "\x00", "\x01", "\x1b[0m", "\x7f", "\ue000",
        "\U0010fffd", "𝔘𝔫𝔦", "𐍈"),
    "spm": ("▁", "▁▁", "Ġ", "Ċ", "<0x0A>", "<0x41>", "<unk>", "<s>", "</s>"),
}  # fmt: skip
DIGITS = "0123456789"
LONGEST = 14  # pieces of a text


def fuzz_texts(seed: int, count: int, specials: Sequence[str] = ()) -> list[str]:
    """``count`` texts, the same for the same arguments: the empty one, every piece, then mixtures.

    Numbers have 1 to 20 digits; ``specials`` are names of added tokens, which are mixed in.
    """
    draw = random.Random(seed)
    kinds = {**PIECES, "specials": tuple(specials)} if specials else PIECES
    makers: list[Callable[[], str]] = [partial(draw.choice, pieces) for pieces in kinds.values()]
    makers += [partial(_number, draw)] * 3 + [partial(_any_letter, draw)]
    plain = ["", *(piece for pieces in kinds.values() for piece in pieces)]
    texts = plain[:count]
    while len(texts) < count:
        texts.append("".join(draw.choice(makers)() for _ in range(draw.randint(1, LONGEST))))
    return texts


def _number(draw: random.Random) -> str:
    digits = "".join(draw.choice(DIGITS) for _ in range(draw.randint(1, 20)))
    return draw.choice(("", " ", "-", "$", "1,", "v", "\n")) + digits


def _any_letter(draw: random.Random) -> str:
    """A character from anywhere in Unicode that has a name; surrogates are none."""
    while True:
        letter = chr(draw.randrange(0x20, draw.choice((0x250, 0x2FFF, 0xFFFF, 0x1FFFF))))
        if unicodedata.category(letter) not in ("Cs", "Cn", "Co"):
            return letter

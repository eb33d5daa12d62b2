"""Ten thousand odd lines, the same on every machine: what tokenizers trip over.

Scripts of the world, combining marks, emoji sequences, right-to-left text with its marks, control
characters, code, runs of whitespace, numbers, empty and very long lines, and special tokens as a
user would type them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np

# First and last code point of letters and signs; what is unassigned between them stays in.
SCRIPTS = [
    (0x41, 0x5A),
    (0x61, 0x7A),
    (0xC0, 0x24F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x531, 0x586),
    (0x5D0, 0x5EA),
    (0x620, 0x64A),
    (0x700, 0x74A),
    (0x904, 0x939),
    (0x985, 0x9B9),
    (0xB85, 0xBB9),
    (0xE01, 0xE3A),
    (0xE81, 0xEB0),
    (0x10A0, 0x10FF),
    (0x1200, 0x135A),
    (0x13A0, 0x13F4),
    (0x1780, 0x17B3),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x3400, 0x3500),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0x10300, 0x1031F),
    (0x1D400, 0x1D7FF),
    (0x20000, 0x20200),
]
_WORDS = (
    "the of and river stone paper amber quiet engine window forest copper lantern orbit it's don't"
    " WE'LL I'm you've naïve café Straße Zoë Ελληνικά русский Москва עברית العربية हिन्दी ไทย"
    " 日本語 漢字 한국어 ქართული Tiếng Việt"
)
WORDS = _WORDS.split()
EMOJI = [
    "🙂",
    "👩‍👩‍👧",
    "🏳️‍🌈",
    "👍🏽",
    "🇩🇪",
    "🇯🇵",
    "1️⃣",
    "❤️",
    "🧑🏿‍💻",
    "☺",
    "🫠",
    "🕵️‍♀️",
    "👨‍❤️‍💋‍👨",
    "\U000e0067",
]
MARKS = [
    "\u200e",
    "\u200f",
    "\u202a",
    "\u202b",
    "\u202c",
    "\u202d",
    "\u202e",
    "\u2066",
    "\u2067",
    "\u2069",
    "\u200d",
]
CONTROL = [
    *map(chr, (*range(32), *range(127, 160))),
    "\ufeff",
    "\ufffd",
    "\u2028",
    "\u2029",
    "\u2581",
    "\ue000",
]
BLANKS = [
    " ",
    "  ",
    "   ",
    "    ",
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u200b",
    "\v",
    "\f",
]
TYPED = [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<bos>",
    "<eos>",
    "<0x0A>",
    "<|user|>\n",
    "\n<|assistant|>\n",
    "<|embed|>\n",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<start_of_turn>user\n",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</s",
    "<|im_",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
    "<s><s>",
]
CODE = [
    "def {a}({b}, *args):\n    return [{a}({b}) for {b} in range({n})]\n",
    "if ({a} != {b}) {{\n\t{a} += 0x{n:x};\t// {b}\n}}",
    '{{"{a}": [{n}, {n}.5e-3], "{b}": null}}',
    "<div class='{a}'>\r\n  <p>{b} &amp; {n}</p>\r\n</div>",
    "SELECT {a}, COUNT(*) FROM {b} WHERE {a} >= {n};",
    "  - {a}: !!str '{b}'   # {n}",
    'r"^({a}|{b})+\\s*?$" == ======== {n}',
]
LONG = 120_000  # characters of the very long lines


def lines(count: int = 10_000, seed: int = 0) -> list[str]:
    """`count` lines; the first ones are the very long ones (five of them from a thousand lines
    on)."""
    rng = np.random.default_rng(seed)
    kinds: list[Callable[[np.random.Generator], str]] = [
        prose,
        prose,
        _script,
        _combining,
        _emoji,
        _right_to_left,
        _control,
        code,
        code,
        _blank,
        number,
        _typed,
        _anything,
        _mixed,
        _mixed,
        lambda _: "",
    ]
    found = _long(rng) if count >= 1000 else []
    return found + [kinds[i % len(kinds)](rng) for i in range(count - len(found))]


def _pick(rng: np.random.Generator, items: list[str], least: int = 1, most: int = 12) -> list[str]:
    return [items[i] for i in rng.integers(len(items), size=rng.integers(least, most + 1))]


def prose(rng: np.random.Generator) -> str:
    text = " ".join(_pick(rng, WORDS, 1, 40))
    ends = [".", "?", "!\n", "...", "", ".\n\n", " "]
    return (text.capitalize() if rng.random() < 0.5 else text) + ends[rng.integers(len(ends))]


def _script(rng: np.random.Generator) -> str:
    first, last = SCRIPTS[rng.integers(len(SCRIPTS))]
    return " ".join(
        "".join(map(chr, rng.integers(first, last + 1, size=rng.integers(1, 12))))
        for _ in range(rng.integers(1, 9))
    )


def _combining(rng: np.random.Generator) -> str:
    marks = "".join(
        letter + "".join(map(chr, rng.integers(0x300, 0x370, size=rng.integers(0, 4))))
        for letter in "aeiouyÅñ"
    )
    return unicodedata.normalize(
        ("NFC", "NFD")[rng.integers(2)], marks + " " + WORDS[rng.integers(len(WORDS))]
    )


def _emoji(rng: np.random.Generator) -> str:
    return ("", " ")[rng.integers(2)].join(_pick(rng, EMOJI + WORDS[:6]))


def _right_to_left(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, [*MARKS, "שלום ", "مرحبا ", "abc ", "١٢٣ ", "(12) ", "، "], 3, 20))


def _control(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, CONTROL + WORDS[:12], 2, 16))


def code(rng: np.random.Generator) -> str:
    a, b = (WORDS[i] for i in rng.integers(12, size=2))
    indent = " " * int(rng.integers(0, 13))
    return indent + CODE[rng.integers(len(CODE))].format(a=a, b=b, n=int(rng.integers(10**6)))


def _blank(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, BLANKS + ["a", "B.", "漢"], 1, 14))


def number(rng: np.random.Generator) -> str:
    n, x = int(rng.integers(10**12)), rng.random()
    forms = [
        str(n),
        f"{n:,}",
        f"-{x:.9f}",
        f"{x:e}",
        f"0x{n:X}",
        f"{n % 100}%",
        "１２３４",
        "٣٤٥٦",
        "Ⅷ ½ ⁷",
        f"€{n}.00",
    ]
    return " ".join(_pick(rng, forms, 1, 5))


def _typed(rng: np.random.Generator) -> str:
    return ("", " ", "a", "\n")[rng.integers(4)].join(_pick(rng, TYPED + WORDS[:4], 1, 8))


def _anything(rng: np.random.Generator) -> str:
    points = rng.integers(1, 0x110000, size=rng.integers(1, 30))
    return "".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF)


def _mixed(rng: np.random.Generator) -> str:
    makers = (prose, _script, _emoji, code, _blank, number, _typed, _combining, _control)
    return "".join(makers[i](rng) for i in rng.integers(len(makers), size=rng.integers(2, 5)))


def _long(rng: np.random.Generator) -> list[str]:
    words = rng.integers(len(WORDS), size=LONG // 6)
    return [
        " ".join(WORDS[i] for i in words),
        "x" * LONG,
        "".join(map(chr, rng.integers(0x4E00, 0x9FFF, size=LONG))),
        " " * LONG + "\n" * 1000,
        "".join("acgt"[i] for i in rng.integers(4, size=LONG)),
    ]

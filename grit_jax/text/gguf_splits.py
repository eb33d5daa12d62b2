"""How byte-level tokenizers split a text before merging, by the name that a GGUF file gives it.

A GGUF file has no pattern, only a name (`tokenizer.ggml.pre`), which llama.cpp's converter finds by
hashing the ids of a test sentence. The steps here are those in the tokenizer.json of the models
that the converter names. Sources: `llama.cpp: convert_hf_to_gguf_update.py, src/llama-vocab.cpp`,
the published tokenizer.json files, `transformers: integrations/gguf/gguf_tokenizer_mapping.py`.
"""

from __future__ import annotations

import dataclasses
import re

from tokenizers import Regex, pre_tokenizers


@dataclasses.dataclass(frozen=True)
class Splits:
    """How a text is split, and what else a tokenizer of that name does.

    Attributes:
      patterns: regular expressions, applied one after the other; every match becomes a word.
      gpt2: whether GPT-2's own pattern is applied after them.
      ignore_merges: whether a word that is a token by itself is not merged from its parts.
      adds_bos: whether a text begins with the beginning of sequence where the file does not say.
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The steps as a pre-tokenizer, which ends with the byte alphabet."""
        splits = [pre_tokenizers.Split(Regex(text), "isolated") for text in self.patterns]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        return pre_tokenizers.Sequence([*splits, last])


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_CASED_REST}"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"
_SEED_CODER = (
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1}}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
# The letters with an upper or a lower case, as DeepSeek lists them (several of them are equal
# to others after Unicode normalisation, so they are written as numbers).
_DEEPSEEK_LETTERS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386"
    " 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA"
    " 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57"
    " 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB"
    " 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D"
    " 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3"
    " A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A"
    " FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)


def _characters(ranges: str) -> str:
    """Code points and ranges of them in hexadecimal as a character class."""
    return re.sub("[0-9A-F]+", lambda end: chr(int(end[0], 16)), f"[{ranges}]").replace(" ", "")


_DEEPSEEK_PUNCTUATION = _characters("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_DEEPSEEK_ASIAN = _characters("800-9FA5 AC00-D7FF")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    rf"{_characters('4E00-9FA5 3040-309F 30A0-30FF')}+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DIGIT = r"\p{N}"

_GPT2 = Splits(gpt2=True)
_DIGIT_GPT2 = Splits((_DIGIT,), gpt2=True)
_WITH_BOS = Splits((_LLAMA3,), ignore_merges=True, adds_bos=True)
_GROUPS: tuple[tuple[str, Splits], ...] = (
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _WITH_BOS,
    ),
    ("dbrx smaug-bpe chatglm-bpe glm4", Splits((_LLAMA3,))),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        Splits((_QWEN2,)),
    ),
    ("qwen35", Splits((_QWEN35,))),
    ("ufakzeka", Splits((rf"{_WORD}|\p{{N}}|{_REST}",))),
    ("tekken", Splits((_TEKKEN,), ignore_merges=True, adds_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Splits((_GPT4O,))),
    ("seed-coder", Splits((_SEED_CODER,))),
    ("bailingmoe bailingmoe2 llada-moe", Splits((_BAILING,))),
    (
        "minicpm5",
        Splits((r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_REST}"), ignore_merges=True),
    ),
    (
        "gpt-2 default mpt olmo jais trillion granite-docling phi-2 gigachat a.x-4.0 mellum"
        " modern-bert exaone4",
        _GPT2,
    ),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _DIGIT_GPT2),
    (
        "deepseek-llm",
        Splits(
            (
                r"[\r\n]",
                rf"\s?{_characters(_DEEPSEEK_LETTERS)}+",
                rf"\s?{_DEEPSEEK_PUNCTUATION}+",
                r"\s+$",
                rf"{_DEEPSEEK_ASIAN}+",
                _DIGIT,
            )
        ),
    ),
    (
        "deepseek-coder",
        Splits((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"{_DEEPSEEK_ASIAN}+", _DIGIT)),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm", Splits(_DEEPSEEK_V3)),
    ("bloom poro-chat gpt3-finnish", Splits((_BLOOM,))),
    ("viking", Splits((_BLOOM, _DIGIT))),
)
# Splitting by `tokenizer.ggml.pre`. A file without a name, or with `default`, is read as GPT-2's,
# as transformers does.
SPLITS: dict[str, Splits] = {name: splits for names, splits in _GROUPS for name in names.split(" ")}

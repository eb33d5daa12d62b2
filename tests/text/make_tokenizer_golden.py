"""Writes `golden/`: small tokenizers as they are published, and the ids that transformers gives odd
lines with them.

Run once with the `peers` extra: `python tests/text/make_tokenizer_golden.py`.
`test_tokenizer_golden.py` reads the files without it; `tests/peers/test_tokenizers.py` makes the
same comparison live, on ten thousand lines.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import corpus  # noqa: E402
import tokenizer_kinds  # noqa: E402

FOLDER = Path(__file__).parent / "golden"
KINDS = ("gpt2", "llama3", "qwen", "llama2", "llama2-legacy", "mistral", "gemma")
LINES = 40


def main() -> None:
    """Makes all of it anew."""
    import transformers

    shutil.rmtree(FOLDER, ignore_errors=True)
    lines = corpus.lines(LINES, seed=3)
    ids = {"transformers": transformers.__version__, "lines": lines, "text": {}, "default": {}}
    for kind in KINDS:
        tokenizer_kinds.VOCAB = 360 if kind in tokenizer_kinds.BYTE_LEVEL else 700
        directory = tokenizer_kinds.make(kind, FOLDER / kind)
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        # A user's text, and a text whose special tokens are real.
        for name, split in (("text", True), ("default", False)):
            ids[name][kind] = theirs(lines, add_special_tokens=False, split_special_tokens=split)[
                "input_ids"
            ]
    (FOLDER / "ids.json").write_text(json.dumps(ids, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Makes every golden file anew: `python tests/make_all_golden.py`, with the `peers` extra
installed.

The files are what torch and transformers say of tiny random models and tokenizers. The tests that
read them need neither; `pytest -m peers` compares live, with other weights and inputs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MAKERS = (
    "models/make_golden.py",
    "models/hf/make_sentence_golden.py",
    "training/make_golden.py",
    "text/make_tokenizer_golden.py",
)


def main() -> None:
    """Runs each maker in a process of its own: they have modules of one name."""
    for maker in MAKERS:
        subprocess.run([sys.executable, str(Path(__file__).parent / maker)], check=True)


if __name__ == "__main__":
    main()

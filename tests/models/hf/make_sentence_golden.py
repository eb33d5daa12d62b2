"""Makes `golden/embedding_gemma`: a tiny model in EmbeddingGemma's layout as sentence-transformers
saves it, and the vectors that it computes.

Needs torch, transformers and sentence-transformers (extra `peers`); the test that reads the
directory needs none of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from sentence_models import PROMPTS, TEXTS, embedding_gemma  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "embedding_gemma"
# Of tokenizer_config.json: what names the machine on which it was made.
LOCAL = ("vocab_file", "is_local", "local_files_only")


def main() -> None:
    """Writes the directory anew."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        model = embedding_gemma(Path(folder))
        model.save(str(GOLDEN))
    (GOLDEN / "README.md").unlink()
    path = GOLDEN / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in LOCAL}
    path.write_text(json.dumps(config, indent=2) + "\n")
    vectors = {"plain": model.encode(TEXTS)}
    vectors |= {name: model.encode(TEXTS, prompt_name=name) for name in PROMPTS}
    save_file({name: np.asarray(v) for name, v in vectors.items()}, GOLDEN / "vectors.safetensors")


if __name__ == "__main__":
    main()

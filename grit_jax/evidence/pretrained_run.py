"""What the parts of `grit evidence --base MODEL` share: flags, files, models and scores."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grit_jax.data.formats import EmbeddingExample, GenerativeExample
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.evidence.answers import Questions
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.inference.model import GritLM
from grit_jax.models.hf.sources import ADAPTED
from grit_jax.quickstart.pretrained import model_of

TEXTS = 64  # of documentation, and of conversations, whose perplexity is taken, at most
DISTILLED_MODEL = "seed-0/distilled/model"  # in the output folder


@dataclasses.dataclass(frozen=True)
class PretrainedOptions:
    """The flags of `grit evidence --base MODEL`.

    Attributes:
      base: the pretrained model: a directory, a hub id or a known name.
      model: the trained model that is scored; None: the shipped adapter of the base, or else the
        model that is trained here with self-distillation.
      data: the folder of a corpus (`grit data pydocs --sentences`); None: made in the output folder
        from the packages of this machine.
      chat, chat_heldout: files of conversations in the base's own words, to train on and to score;
        None: none.
      steps: optimizer steps of each training; None: the recipes'.
      seeds: trainings of each configuration.
      questions: held-out questions that are answered, at most.
      queries: held-out queries that are searched for, at most.
    """

    base: str
    model: str | None = None
    data: Path | None = None
    chat: Path | None = None
    chat_heldout: Path | None = None
    steps: int | None = None
    seeds: int = 1
    questions: int = 64
    queries: int = 128


class PretrainedRun:
    """A run's files, and its models, opened when a part first needs them.

    Attributes:
      out: the output folder.
      data: the folder of the corpus.
    """

    def __init__(self, out: Path, options: PretrainedOptions):
        self.out, self.options = out, options
        self.data = options.data if options.data is not None else out / "data"

    @functools.cached_property
    def named_model(self) -> str | None:
        """The trained model that the flags name; None: one that is trained here."""
        if self.options.model is not None:
            return self.options.model
        name = model_of(self.options.base)
        return name if name in ADAPTED else None

    @functools.cached_property
    def model_name(self) -> str:
        """The trained model that `documents`, `codecs` and `prompts` score.

        Raises:
          GritError: none is named, and none is trained yet.
        """
        trained_here = self.out / DISTILLED_MODEL
        if self.named_model is None and not trained_here.is_dir():
            raise GritError(
                f"--model: expected the trained model to score, because no adapter is shipped for"
                f" {self.options.base}; or run --part cached first, which trains one"
            )
        return self.named_model or str(trained_here)

    @functools.cached_property
    def model(self) -> GritLM:
        """The same, opened."""
        return open_model(self.model_name)

    def scores(self, model: GritLM, kind: str, *files: Path) -> ScoreFile:
        """The file of a model's scores of one kind, of rows from some files."""
        folder = self.out / "scores" / model.weights_hash[:16]
        folder.mkdir(parents=True, exist_ok=True)
        scored = {"weights": model.weights_hash, "rows": _digest(files)}
        return ScoreFile(folder / f"{kind}.json", scored)

    def heldout(self, name: str) -> Path:
        """A held-out file of the corpus."""
        return self.data / "heldout" / f"{name}.jsonl"

    def train(self, name: str) -> Path:
        """A training file of the corpus."""
        return self.data / "train" / f"{name}.jsonl"

    @functools.cached_property
    def questions(self) -> Questions:
        """The held-out questions that are answered."""
        every = Questions.read(self.data / "heldout")
        return dataclasses.replace(every, examples=every.examples[: self.options.questions])

    def question_counts(self) -> dict[str, int]:
        """How many questions are answered, of how many."""
        used = len(self.questions.examples)
        return {"questions": used, "questions_all": _lines(self.heldout("rag"))}

    def answer_scores(self, model: GritLM) -> ScoreFile:
        """The file of a model's answers to `questions`."""
        return self.scores(model, "answers", self.heldout("rag"), self.heldout("documents"))

    @functools.cached_property
    def queries(self) -> list[EmbeddingExample]:
        """The held-out queries that are searched for."""
        source = read_examples(self.heldout("embedding"), "embedding")
        return [source[i] for i in range(min(len(source), self.options.queries))]

    def query_counts(self) -> dict[str, int]:
        """How many queries are searched for, of how many."""
        return {"queries": len(self.queries), "queries_all": _lines(self.heldout("embedding"))}

    def texts(self) -> dict[str, list[GenerativeExample]]:
        """The held-out texts whose perplexity is taken, by kind."""
        files = {"documentation": self.heldout("generative")}
        if self.options.chat_heldout is not None:
            files["chat"] = self.options.chat_heldout
        texts: dict[str, list[GenerativeExample]] = {}
        for kind, path in files.items():
            source = read_examples(path, "generative")
            texts[kind] = [source[i] for i in range(min(len(source), TEXTS))]
        return texts

    def texts_file(self, kind: str) -> Path:
        """The file of one of `texts`."""
        chat = self.options.chat_heldout
        return chat if kind == "chat" and chat is not None else self.heldout("generative")

    def text_counts(self) -> dict[str, Any]:
        """How many texts of each kind are scored, of how many."""
        counts = {kind: len(texts) for kind, texts in self.texts().items()}
        return {
            "texts": counts,
            "texts_all": {kind: _lines(self.texts_file(kind)) for kind in counts},
        }


def open_model(name: str) -> GritLM:
    """A model on all devices, in the dtype that suits them."""
    return GritLM.from_pretrained(name, dtype="auto", mesh="auto")


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _digest(files: Iterable[Path]) -> str:
    """Hash of the content of files."""
    content = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as stream:
            content.update(hashlib.file_digest(stream, "blake2b").digest())
    return content.hexdigest()

"""What a quickstart may be asked to do otherwise."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """The flags of `grit quickstart`. A folder belongs to one set of them.

    Attributes:
      seed: of the corpus, the training and the untrained model.
      from_scratch: train the tokenizer and the base model, too.
      documents: at most this many documents of the corpus; None takes all of them.
      steps: optimizer steps of the joint training; None takes the default.
    """

    seed: int = 0
    from_scratch: bool = False
    documents: int | None = None
    steps: int | None = None

    @property
    def is_small(self) -> bool:
        """Whether the corpus or the training was cut short."""
        return self.documents is not None or self.steps is not None


@dataclasses.dataclass(frozen=True)
class PretrainedSettings:
    """The flags of `grit quickstart --base MODEL`. A folder belongs to one set of them.

    Attributes:
      base: the model: a directory, a hub id or a known name.
      seed: of the corpus and of the training.
      documents: at most this many documents of the corpus; None takes all of them.
      steps: optimizer steps of a short training that starts from the model; None: no training.
    """

    base: str
    seed: int = 0
    documents: int | None = None
    steps: int | None = None

"""Reranking in the slots of an engine that is running (`rerank.py` has what is asked).

Candidates are requests of one token among the engine's other ones: they share its batch, its queue
and its compiled programs.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.inference.adjustments import Adjustments
from grit_jax.inference.engine import Engine
from grit_jax.inference.fair_queue import QueueFull
from grit_jax.inference.requests import GenerateRequest, GenerateResult, Pending
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.generator import RagGenerator, RagPrompt
from grit_jax.rag.record_format import StreamedRecord
from grit_jax.rag.rerank import label_tokens


@dataclasses.dataclass(frozen=True)
class EngineJudge:
    """The engine that judges.

    Attributes:
      engine: one that is `adjustable`.
      adapter: the number of the model's adapter in it; 0: the model itself.
    """

    engine: Engine
    adapter: int = 0

    def relevance(
        self, generator: RagGenerator, prompts: Sequence[RagPrompt], user: str = ""
    ) -> Float[np.ndarray, " P"]:
        """The probability of "yes" against "no" of each prompt, as `rerank.relevance`.

        As many candidates are in the engine at once as it has slots, so that others take their
        turns among them.

        Raises:
          QueueFull: nothing of this question is under way, and too many requests wait.
          GritError: as `rerank.relevance`, or the engine has ended.
        """
        labels = label_tokens(generator.model)
        asked = Adjustments(logprobs=True, labels=labels)
        sampling = Sampling(max_new_tokens=1, ignore_eos=True, adjustments=asked)
        waiting: collections.deque[tuple[int, Pending[GenerateResult]]] = collections.deque()
        odds, most = np.zeros(len(prompts)), self.engine.stats().slots

        def collect() -> None:
            number, pending = waiting.popleft()
            logprobs = pending.result().logprobs
            assert logprobs is not None
            yes, no = logprobs.top[0, :2].astype(np.float64)
            odds[number] = yes - no

        try:
            for number, prompt in enumerate(prompts):
                while len(waiting) >= most:
                    collect()
                fitted = generator.fitted(_read(prompt), 1)
                request = GenerateRequest(
                    fitted.ids,
                    fitted.records,
                    sampling,
                    name="rerank",
                    user=user,
                    adapter=self.adapter,
                )
                while True:
                    try:
                        waiting.append((number, self.engine.submit(request)))
                        break
                    except QueueFull:
                        if not waiting:
                            raise
                        collect()
            while waiting:
                collect()
        finally:
            for _, pending in waiting:
                pending.cancel()
        if not np.isfinite(odds).all():
            raise GritError(
                "rerank: a probability is not finite; the model's weights or logits are not"
            )
        return 1 / (1 + np.exp(np.clip(-odds, -700, 700)))


def _read(prompt: RagPrompt) -> RagPrompt:
    """The prompt with its records in memory: what is damaged shows before the engine has it."""
    records = tuple(
        record.whole() if isinstance(record, StreamedRecord) else record
        for record in prompt.records
    )
    return dataclasses.replace(prompt, records=records)

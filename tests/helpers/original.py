"""What the original computes, restated in torch over transformers' models: the other side of the
parity tests.

Formulas, formats and rules are those of ContextualAI/gritlm (commit 9710681, package 1.0.2), named
where they are used as `gritlm: path:lines`. Batches are padded on the right as there: dictionaries
of `input_ids` and `attention_mask` `[B, T]`, with `instruction_lens` `[B]` for texts to embed and
`labels` `[B, T]` for sequences. Nothing here imports the package that is tested.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

Padded = dict[str, torch.Tensor]

TEMPERATURE = 0.02  # gritlm: gritlm/training/arguments.py
IGNORED = -100
# gritlm: gritlm/training/run.py:17-29
BOS, EOS, TURN, USER, EMBED, ASSISTANT = (
    "<s>",
    "</s>",
    "\n",
    "<|user|>\n",
    "\n<|embed|>\n",
    "\n<|assistant|>\n",
)


# --- collation: strings to padded batches ---------------------------------------------------------


def embedding_prompt(instruction: str) -> str:
    """What stands before a text (gritlm: gritlm/training/data.py:183-203)."""
    instruction = instruction.strip("\t\n :")
    return BOS + USER + instruction + EMBED if instruction else BOS + EMBED.lstrip()


def collate_embedding(tokenizer: Any, texts: Sequence[tuple[str, str]], max_length: int) -> Padded:
    """`(instruction, text)` pairs (gritlm: gritlm/training/data.py:181-203, 231-249, 261-269)."""
    prompts = [embedding_prompt(instruction) for instruction, _ in texts]
    batch = _pad(
        tokenizer, [prompt + text for prompt, (_, text) in zip(prompts, texts)], max_length
    )
    batch["instruction_lens"] = torch.tensor(
        [len(tokenizer.tokenize(prompt)) for prompt in prompts]
    )
    return batch


def collate_generative(
    tokenizer: Any,
    conversations: Sequence[Sequence[str]],
    max_length: int,
    *,
    prefix_lm: bool = False,
) -> Padded:
    """Conversations `[user, assistant, ...]` with their labels (gritlm:
    gritlm/training/data.py:205-279).

    Each fragment is tokenised by itself and its length is counted off, `TURN` never: what the last
    answer begins with is right for one turn only.
    """
    strings, fragment_lengths = [], []
    for turns in conversations:
        pairs = zip(turns[::2], turns[1::2], strict=True)
        strings.append(
            BOS
            + TURN.join(USER + user + ASSISTANT + answer.strip() + EOS for user, answer in pairs)
        )
        fragments = [
            (BOS if i == 0 else "") + USER + turn + ASSISTANT if i % 2 == 0 else turn.strip() + EOS
            for i, turn in enumerate(turns[:-1])
        ]
        fragment_lengths.append([len(tokenizer.tokenize(fragment)) for fragment in fragments])
    batch = _pad(tokenizer, strings, max_length)
    labels = batch["input_ids"].clone()
    labels[:, 1:][labels[:, 1:] == tokenizer.pad_token_id] = IGNORED
    for row, lengths in zip(labels, fragment_lengths):
        start = 0
        for i, length in enumerate(lengths):
            if i % 2 == 0 or prefix_lm:
                row[start : start + length] = IGNORED
            start += length
    return batch | {"labels": labels}


def _pad(tokenizer: Any, strings: list[str], max_length: int) -> Padded:
    found = tokenizer(
        strings,
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
        add_special_tokens=False,
    )
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


# --- representations ------------------------------------------------------------------------------


def pool(hidden: torch.Tensor, mask: torch.Tensor, method: str) -> torch.Tensor:
    """`[B T D]` and an integer mask `[B T]` to `[B D]` (gritlm: gritlm/gritlm.py:184-218)."""
    if method == "cls":
        return hidden[:, 0]
    if method == "lasttoken":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return hidden[torch.arange(len(hidden)), last.clamp(min=0)]
    weights = mask * mask.cumsum(1) if method == "weightedmean" else mask
    return (hidden * weights[:, :, None].float()).sum(1) / weights.sum(1, keepdim=True).float()


def embed(
    model: Any,
    batch: Padded,
    pooling: str = "mean",
    attention: str = "bb",
    projection: torch.nn.Linear | None = None,
) -> torch.Tensor:
    """Unit vectors `[B D]` (gritlm: gritlm/training/model.py:134-165): the instruction is seen and
    not pooled, each token is projected before."""
    hidden = hidden_states(model, batch, attention, batch["instruction_lens"])
    hidden = hidden if projection is None else projection(hidden)
    mask = batch["attention_mask"].clone()
    for row, length in zip(mask, batch["instruction_lens"].tolist()):
        row[:length] = 0
    return F.normalize(pool(hidden, mask, pooling), dim=-1)


def hidden_states(model: Any, batch: Padded, attention: str, prompts: torch.Tensor) -> torch.Tensor:
    """`[B T D]`. The first letter is the attention of the first `prompts` tokens of each text among
    themselves, the second that of the others, bidirectional or causal (arXiv 2402.09906, section
    3.1; of "cb" and "bc" the released code has the names alone:
    gritlm/training/model.py:141-142)."""
    if attention == "cc":
        return model.model(
            batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
    mask = batch["attention_mask"]
    if attention != "bb":
        place = torch.arange(mask.shape[1])
        behind = place >= prompts[:, None]  # [B T]
        free = behind if attention == "cb" else ~behind
        seen = (place[None, :] <= place[:, None]) | (free[:, :, None] & free[:, None, :])
        allowed = seen & mask[:, None, :].bool()
        mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]
    return model.model(batch["input_ids"], attention_mask=mask, is_causal=False).last_hidden_state


# --- losses ---------------------------------------------------------------------------------------


def contrastive(
    queries: torch.Tensor, passages: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """InfoNCE over all passages, the positive first in its group (gritlm:
    gritlm/training/model.py:36-47)."""
    scores = queries @ passages.T / temperature
    targets = torch.arange(len(queries)) * (len(passages) // len(queries))
    return F.cross_entropy(scores, targets)


def language(model: Any, batch: Padded, kind: str = "mixed", factor: float = 1.0) -> torch.Tensor:
    """The language loss of one device's batch (gritlm: gritlm/training/model.py:81-107)."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return shifted(logits, batch["labels"], kind) * factor


def prefix_language(model: Any, batch: Padded, kind: str = "mixed") -> torch.Tensor:
    """The paper's prefix-LM ("bc"): what stands before the first label sees all of itself."""
    prompts = (batch["labels"] != IGNORED).int().argmax(1)
    return shifted(model.lm_head(hidden_states(model, batch, "bc", prompts)), batch["labels"], kind)


def shifted(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Cross-entropy of each token given those before it: sum over sequences' number, or mean over
    tokens."""
    reduction = "sum" if kind == "token" else "mean"
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction
    )
    return loss / len(labels) if kind == "token" else loss


def mixtral_language(
    model: Any, batch: Padded, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Total and router loss of a mixture of experts (gritlm:
    scripts/modeling_mixtral_gritlm.py:1403-1430): the token loss with the factor, and the balance
    of the router's choices with a coefficient and without the factor."""
    out = model(
        batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
    )
    router = load_balancing(
        out.router_logits, batch["attention_mask"], model.config.num_experts_per_tok
    )
    total = (
        shifted(out.logits, batch["labels"], "token") * factor
        + model.config.router_aux_loss_coef * router
    )
    return total, router


def load_balancing(
    router_logits: Sequence[torch.Tensor], mask: torch.Tensor, top_k: int
) -> torch.Tensor:
    """Switch's balance over the tokens of all layers (gritlm:
    scripts/modeling_mixtral_gritlm.py:80-150).

    `E * sum over choices and experts of (share of tokens that chose it) * (mean probability)`,
    padding left out.
    """
    probabilities = torch.cat(list(router_logits)).softmax(-1)  # [layers * B * T, E]
    experts = probabilities.shape[-1]
    chosen = F.one_hot(probabilities.topk(top_k).indices, experts).float()  # [.., k, E]
    kept = mask.flatten().repeat(len(router_logits)).float()
    share = torch.einsum("n,nke->ke", kept, chosen) / kept.sum()
    mean = kept @ probabilities / kept.sum()
    return experts * (share * mean).sum()


# --- gradients ------------------------------------------------------------------------------------


def gradients(
    model: Any, loss: Callable[[], torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The value of `loss()` and its gradient for every weight; zeros where it does not depend on
    one."""
    model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    return value.item(), collected(model)


def collected(model: Any) -> dict[str, torch.Tensor]:
    """The gradients that lie in a model, by the names of its weights."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
    }


def grad_cache(
    model: Any,
    queries: Padded,
    passages: Padded,
    chunk: int,
    temperature: float = TEMPERATURE,
    **how: Any,
) -> tuple[float, dict[str, torch.Tensor]]:
    """The contrastive step in two passes (gritlm:
    gritlm/training/GradCache/src/grad_cache/grad_cache.py:169-280): vectors without a graph, the
    loss's gradient with respect to them, then chunk by chunk their dot product."""
    model.zero_grad(set_to_none=True)
    sides = [_chunks(side, chunk) for side in (queries, passages)]
    with torch.no_grad():
        found = [torch.cat([embed(model, part, **how) for part in side]) for side in sides]
    found = [vectors.requires_grad_() for vectors in found]
    loss = contrastive(*found, temperature)
    loss.backward()
    for side, vectors in zip(sides, found):
        for part, gradient in zip(side, vectors.grad.split(chunk)):
            (embed(model, part, **how) * gradient).sum().backward()
    return loss.item(), collected(model)


def split_step(
    model: Any, queries: Padded, passages: Padded
) -> tuple[float, dict[str, torch.Tensor]]:
    """Two backward passes, the passages' with the queries held fixed and the queries' with the
    passages' vectors of the first (gritlm: gritlm/training/gradcache_trainer.py:584-605)."""
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        fixed = embed(model, queries)
    found = embed(model, passages)
    first = contrastive(fixed, found)
    first.backward()
    second = contrastive(embed(model, queries), found.detach())
    second.backward()
    assert torch.allclose(first, second)
    return second.item(), collected(model)


def ranks_step(
    model: Any,
    ranks: int,
    queries: Padded,
    passages: Padded,
    generative: Padded,
    kind: str,
    factor: float,
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """One step on several devices with negatives across them: contrastive loss, language loss,
    gradients.

    Each device sees the whole batch's vectors, its own with a graph and the others' without one,
    and the gradients of the devices are averaged (gritlm: gritlm/training/model.py:36-60): of the
    contrastive loss there remains one part in `ranks`, of the language loss, which each device has
    of its own sequences, the mean.
    """
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        everyone = [_split(embed(model, side), ranks) for side in (queries, passages)]
    losses = []
    for rank in range(ranks):
        mine = [embed(model, _chunks(side, ranks=ranks)[rank]) for side in (queries, passages)]
        gathered = [
            torch.cat([*all_[:rank], own, *all_[rank + 1 :]]) for all_, own in zip(everyone, mine)
        ]
        emb = contrastive(*gathered)
        gen = language(model, _chunks(generative, ranks=ranks)[rank], kind, factor)
        ((emb + gen) / ranks).backward()
        losses.append((emb.item(), gen.item()))
    emb, gen = torch.tensor(losses, dtype=torch.float64).mean(0).tolist()
    return emb, gen, collected(model)


def _chunks(batch: Padded, chunk: int = 0, ranks: int = 0) -> list[Padded]:
    size = len(batch["input_ids"])
    starts = range(0, size, chunk or size // ranks)
    return [{name: x[a : a + starts.step] for name, x in batch.items()} for a in starts]


def _split(vectors: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    return list(vectors.split(len(vectors) // ranks))


def adamw(model: Any, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of transformers' Trainer as the original runs it (gritlm:
    gritlm/training/arguments.py leaves its defaults: betas 0.9 and 0.999, eps 1e-8); norms and
    biases are not decayed."""
    groups: dict[bool, list] = {True: [], False: []}
    for name, weight in model.named_parameters():
        groups["norm" not in name and not name.endswith("bias")].append(weight)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=lr,
    )


# --- answers over retrieved documents (gritlm: rag/eval.py) ---------------------------------------

_AFTER_QUERY = (
    "\n\nOptionally using the prior context answer the query prior to it\n<|assistant|>\n"
)
_AFTER_CONTEXT = (
    "\n\nAnswer the prior query while optionally using the context prior to it\n<|assistant|>\n"
)
# gritlm: rag/eval.py:21-32, by the arguments that choose them: (--cache, --prompt).
TEMPLATES = {
    "none": "<|user|>\n{query}\n<|assistant|>\n",
    "query-then-doc": "<|user|>\n{query}\n\n{title} {text}" + _AFTER_QUERY,
    "doc-then-query": "<|user|>\n{title} {text}\n\n{query}" + _AFTER_CONTEXT,
    "query": "\n<|user|>\n{title} {text}" + _AFTER_QUERY,
    "doc": "\n<|user|>\n{query}" + _AFTER_CONTEXT,
    "query-doc": "\n<|user|>\n" + _AFTER_QUERY.lstrip(),
    "doc-query": "\n<|user|>\n" + _AFTER_CONTEXT.lstrip(),
}
# --prompt queryemb and docemb: no cache, and yet the embedding's tag.
EMBEDDED_TEMPLATES = {
    "query": "<|embed|>\n{query}\n<|user|>\n{title} {text}" + _AFTER_QUERY,
    "doc": "<|embed|>\n{title} {text}\n<|user|>\n{query}" + _AFTER_CONTEXT,
}
ANSWER_BEGINS = "The answer is"  # gritlm: rag/eval.py:34, 276
QUERY_FORM = "<s><|embed|>\n{}"  # gritlm: rag/eval.py:202-211, in every layout


def document_form(mode: str, *, indexed: bool) -> str:
    """How a document is encoded for its cache: three forms (gritlm: rag/eval.py:132-138 when the
    index is built, :226-234 when it was not)."""
    if indexed:
        return "<|embed|>\n{}"
    return "\n<|embed|>\n{}" if mode == "query-doc" else "<s><|embed|>\n{}"


@torch.no_grad()
def cache_of(model: Any, ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rotated keys and values `[1 K T H]` of each layer from a bidirectional pass (gritlm:
    gritlm/gritlm.py:127-140)."""
    out = model.model(torch.tensor([list(ids)]), is_causal=False, use_cache=True)
    return [(layer.keys, layer.values) for layer in out.past_key_values.layers]


@torch.no_grad()
def answer(
    model: Any,
    pieces: Sequence[list[tuple[torch.Tensor, torch.Tensor]]],
    prompt: Sequence[int],
    new_tokens: int,
) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits each was chosen from, after caches laid side by side (gritlm:
    rag/eval.py:237-302): a piece keeps the positions of its own pass, the prompt goes on where all
    of them together end."""
    cache = DynamicCache()
    for layer in range(model.config.num_hidden_layers) if pieces else ():
        keys, values = (torch.cat([piece[layer][i] for piece in pieces], dim=2) for i in (0, 1))
        cache.update(keys, values, layer)
    tokens, logits, fresh = [], [], list(prompt)
    for _ in range(new_tokens):
        length = cache.get_seq_length() + len(fresh)
        out = model(
            torch.tensor([fresh]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits[0, -1])
        fresh = [int(logits[-1].argmax())]
        tokens += fresh
    return tokens, torch.stack(logits)


def scores(prediction: str, gold: str) -> dict[str, float]:
    """Exact match, match and F1 of an answer (gritlm: rag/tasks/evaluation.py:12-49)."""

    def normalised(text: str) -> str:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    said, wanted = normalised(prediction), normalised(gold)
    same = sum((Counter(said.split()) & Counter(wanted.split())).values())
    precision, recall = (same / len(x.split()) if same else 0.0 for x in (said, wanted))
    f1 = 2 * precision * recall / (precision + recall) if same else 0.0
    return {"exact_match": float(said == wanted), "match": float(wanted in said), "f1": f1}

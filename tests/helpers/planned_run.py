"""A configuration to plan, and a plan as it comes out, without a compiler."""

from __future__ import annotations

from pathlib import Path

from grit_jax.plan.plan import CompiledProgram, Plan
from grit_jax.plan.program_costs import KINDS, ProgramCosts
from grit_jax.runtime.chips import CHIPS, GIB

# Heads of 128 and rows of 256 tokens, so that splash attention takes them.
RUN = """
model:
  shape: {vocab_size: 512, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 128}
data: {embedding: [a.jsonl], embedding_batch: 16, query_max_length: 128, passage_max_length: 256, row_multiple: 2,
       generative: [b.jsonl], generative_batch: 8, generative_max_length: 256, document_max_length: 256}
train: {steps: 1000, embedding_chunk: 8, loss: {logits_block: 512}}
output: out
"""
# The keys of `grit plan --json` that scripts rely on.
KEYS = {
    "topology",
    "chips",
    "hbm_bytes_per_chip",
    "peak_bytes_per_chip",
    "fits",
    "parameter_bytes_per_chip",
    "optimizer_bytes_per_chip",
    "temporary_bytes_per_chip",
    "flops_per_step",
    "collective_bytes",
    "roofline_step_seconds",
    "mfu_bound",
    "compile_seconds",
}


def write_run(folder: Path) -> Path:
    """Writes `RUN` to a file."""
    path = folder / "run.yaml"
    path.write_text(RUN)
    return path


def a_plan(seconds: float = 2.0, peak: int = 9 * GIB, fits: bool = True, chips: int = 8) -> Plan:
    """A plan whose step is bound by what it sends; one that does not fit has no costs."""
    costs = ProgramCosts(1e15, 1e12, dict.fromkeys(KINDS, 3.0 * GIB), 4e11)
    bounds = {"compute": seconds / 2, "memory": seconds / 4, "interconnect": seconds}
    step = CompiledProgram(
        fits, peak, 2 * GIB, peak - 2 * GIB, 70.0, *((costs, 1e14, 0, bounds) if fits else ())
    )
    mesh = {"data": 1, "fsdp": chips, "tensor": 1}
    return Plan("v5e:2x4", CHIPS["v5e"], mesh, 1800, GIB, 2 * GIB, 10**15, {"train": step})

"""What a checkpoint keeps beside the state."""

from __future__ import annotations

import jax.numpy as jnp

from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.run_record import Input, RunRecord
from grit_jax.training.state import TrainState

RECORD = RunRecord({"train.seed": 1, "lora": None}, {"tokenizer": Input("t", "9 ids", "ab")})


def test_a_checkpoint_keeps_the_record_of_its_run_and_an_old_one_has_none(tmp_path):
    state = TrainState(jnp.int32(1), {"final_norm": jnp.ones(2)}, ())
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(1, state, {"place": 0})
    checkpoints.record = RECORD
    checkpoints.save(2, state, {"place": 0})
    checkpoints.close()
    again = Checkpoints(tmp_path, every=1)
    assert again.record_of(1) is None and again.record_of(2) == RECORD
    assert int(again.restore(1, state, None).step) == 1
    again.close()

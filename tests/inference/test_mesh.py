"""Encoding and generation on several devices equal those on one; eight CPU devices are simulated in
a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np, jax
from grit_jax import GritLM
from grit_jax.sharding import MeshConfig, make_mesh

assert jax.device_count() == 8
texts = ["amber river " * n for n in (1, 30, 4, 9, 2, 60)]
one = GritLM.from_pretrained(sys.argv[1])
many = GritLM.from_pretrained(sys.argv[1], mesh=make_mesh(MeshConfig(2, 2, 2)))
assert any(len(w.sharding.device_set) == 8 and not w.is_fully_replicated for w in many.params.values())
a, b = (m.encode(texts, return_cache=True) for m in (one, many))
np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)
np.testing.assert_allclose(a.caches[3].k, b.caches[3].k, atol=1e-4)
prompts = one.prompt_ids(texts)
pieces = [[a.caches[0]], [], [a.caches[1], a.caches[2]], [], [], []]
x, y = (m.generate_ids(prompts, records=pieces, return_logits=True) for m in (one, many))
assert x.tokens == y.tokens
np.testing.assert_allclose(x.logits, y.logits, atol=1e-3)
assert one.weights_hash == many.weights_hash
np.testing.assert_allclose(one([[1, 2, 3]]).logits, many([[1, 2, 3]]).logits, atol=1e-4)
"""


@pytest.mark.slow
def test_eight_devices_equal_one(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

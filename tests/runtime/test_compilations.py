"""Programs are counted when they are compiled, and not when they are run again."""

from __future__ import annotations

import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from grit_jax.runtime.compilations import count_compilations

X = np.ones(3, np.float32)


def test_a_program_counts_once_for_each_shape_and_dtype():
    f = jax.jit(lambda x: x * 2 + 1)
    before = count_compilations()
    count = lambda: count_compilations() - before
    assert count() == 0
    f(X)
    assert count() == 1
    f(X)
    f(X + 7)
    assert count() == 1
    f(np.ones(4, np.float32))
    f(np.ones(3, np.int32))
    assert count() == 3
    jax.jit(lambda x: x * 2 + 1)(X)  # a function of its own
    assert count() == 4


def test_operations_outside_jit_count_as_well():
    """An operation on a shape that nothing else in this process has."""
    x = jax.device_put(np.ones((3, 1, 4, 1, 5, 9), np.float32))
    before = count_compilations()
    jnp.exp(x)
    first = count_compilations() - before
    assert first >= 1
    jnp.exp(x)
    assert count_compilations() - before == first


def test_compilation_ahead_of_time_counts():
    before = count_compilations()
    lowered = jax.jit(lambda x: x - 3).lower(X)
    assert count_compilations() == before  # traced, and no program yet
    program = lowered.compile()
    assert count_compilations() == before + 1
    program(X)
    assert count_compilations() == before + 1


def test_programs_of_other_threads_count():
    before = count_compilations()
    thread = threading.Thread(target=lambda: jax.jit(lambda x: x - 4)(X))
    thread.start()
    thread.join()
    assert count_compilations() == before + 1


def test_the_first_call_is_0():
    """Also where programs were compiled before."""
    code = (
        "import jax; jax.jit(lambda x: x + 1)(1)\n"
        "from grit_jax.runtime.compilations import count_compilations as count\n"
        "first = count(); jax.jit(lambda x: x + 2)(1); print(first, count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]

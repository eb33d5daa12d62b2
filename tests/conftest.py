"""Tiny models that the tests share: random weights and a tokenizer trained on the spot."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import tempfile
import zlib

from compilation import has_older_fusion_emitter

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many small programs, each run once or twice: quickly compiled ones will do. In the environment, so
# that a process that a test starts rounds as this one does; CI runs the slow and the peers' suites
# with 0.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Fusions by the older emitter: compiling, most of the suite's time, takes about 40% less. Each program
# in one piece: in 32 pieces, for as many threads, it takes a quarter more.
_EMITTERS = "xla_cpu_use_fusion_emitters"
if (
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    and _EMITTERS not in os.environ.get("XLA_FLAGS", "")
    and has_older_fusion_emitter()
):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --{_EMITTERS}=false"
        " --xla_cpu_parallel_codegen_split_count=1"
    )
# Eight simulated devices for the sharding tests; everything else runs on the first.
if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
# Simulated devices wait for each other in every collective. On a machine that is busy with something
# else one of them may come late, and after 40 seconds XLA would abort the process.
if "terminate_timeout" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
# What is compiled once in a run of the tests is not compiled again: not by another file, which jits
# functions of its own, nor by another worker or a process that a test starts. In a new folder, so
# that no program of another version of the code or of JAX is ever read. Workers find it here.
_COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED = tempfile.mkdtemp(prefix="grit-compiled-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from compilation import fully_compiled
from tiny_models import config_for

from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Params, init_params
from grit_jax.text.chat import GRIT
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.text.train_tokenizer import train_tokenizer


def pytest_configure(config: pytest.Config) -> None:
    """With `-n`, a file's tests run in one process: its fixtures are made and its programs compiled
    once, not in every process."""
    if getattr(config.option, "dist", None) == "load":
        config.option.dist = "loadfile"


def pytest_unconfigure() -> None:
    """Removes the compiled programs; in the process that made their folder, not in its workers."""
    if _COMPILED is not None:
        shutil.rmtree(_COMPILED, ignore_errors=True)


_WORDS = """
    river stone paper amber quiet engine window forest copper lantern orbit meadow signal velvet harbor thunder
    pepper candle mirror ribbon desert glacier novel anchor basket cipher dragon ember falcon garden
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what needs the TPU's compiler where it is not installed; with `$GRIT_TEST_SAMPLE` = n,
    keeps every nth test, always the same ones."""
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu"):
                item.add_marker(pytest.mark.skip(reason="needs the extra 'tpu'"))
    if (every := int(os.environ.get("GRIT_TEST_SAMPLE", "1"))) > 1:
        left_out = lambda item: zlib.crc32(item.nodeid.encode()) % every > 0
        config.hook.pytest_deselected(items=list(filter(left_out, items)))
        items[:] = itertools.filterfalse(left_out, items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Programs for TPUs that are not there cannot be read back from the cache, so it is left out."""
    if item.get_closest_marker("tpu"):
        from jax.experimental.compilation_cache import compilation_cache

        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks for the setting once


MOST_MEMORY = 3 * 2**30  # bytes of a process, beyond which compiled programs are forgotten


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Forgets the programs of earlier files once a process has grown large: JAX keeps all of them."""
    yield
    try:
        with open("/proc/self/statm") as statm:
            resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return
    if resident > MOST_MEMORY:
        jax.clear_caches()


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """300 short texts of different lengths, always the same."""
    rng, words = np.random.default_rng(0), _WORDS.split()
    return [
        " ".join(rng.choice(words, size=rng.integers(1, 40))).capitalize() + "." for _ in range(300)
    ]


@pytest.fixture(scope="session")
def tiny_tokenizer(sentences: list[str]) -> Tokenizer:
    """A tokenizer of a few hundred ids."""
    return train_tokenizer(
        [*sentences, "Optionally using the prior context, answer: 0123456789 (yes)!"], 480
    )


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: Tokenizer) -> ModelConfig:
    """Three layers in float32; weights large enough that attention is far from uniform."""
    return config_for(tiny_tokenizer, hidden_size=48, intermediate_size=96, num_hidden_layers=3)


@pytest.fixture(scope="session")
def tiny_params(tiny_config: ModelConfig) -> Params:
    """Random weights of `tiny_config`."""
    return init_params(tiny_config, jax.random.key(0))


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig, tiny_params: Params, tiny_tokenizer: Tokenizer):
    """All of it as the public object."""
    from grit_jax.inference.model import GritLM

    return GritLM(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))


@pytest.fixture()
def full_optimization() -> Iterator[None]:
    """For tests that look at the compiled program itself."""
    with fully_compiled():
        yield

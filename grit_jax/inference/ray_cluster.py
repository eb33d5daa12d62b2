"""Blocks of texts on a Ray cluster: an actor for each device, blocks as tasks of Ray Data, shards
joined by this process.

Ray restarts an actor that is lost and gives its block to another one. A block that is encoded twice
is the same shard under the same name.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import jax

from grit_jax.errors import GritError
from grit_jax.inference.blocks import BlockJob, BlockSettings, model_identity
from grit_jax.inference.model import GritLM
from grit_jax.models.config import ModelConfig
from grit_jax.models.pooling import PoolingMethod
from grit_jax.runtime.blobs import BlobStore, is_url
from grit_jax.runtime.progress import say
from grit_jax.text.chat import ChatFormat
from grit_jax.types import AttentionMode

WINDOW_CHARACTERS = 1 << 30  # of texts given to Ray at once; they pass through its object store
PROBE = "probe-"  # and a random name: a blob that shows whether a node sees the shards


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """Where blocks are encoded.

    Attributes:
      address: of the cluster: HOST:PORT, "auto" (RAY_ADDRESS, or the cluster of this machine), or
        "local" (one is started on this machine).
      actors: how many; None: one for each device, on a cluster without GPUs and TPUs for each node.
      devices: GPUs or TPU chips of an actor.
    """

    address: str = "auto"
    actors: int | None = None
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class _Device:
    """What an actor takes from the cluster, as options of Ray's actors, and how many fit."""

    name: str
    options: dict[str, Any]
    actors: int


class RayCluster:
    """A cluster that encodes blocks (`BlockCluster`). Close it by the `with` statement.

    Args:
      load: opens the model, on any node.

    Raises:
      GritError: the extra is not installed, or there is no cluster at the address.
    """

    def __init__(self, load: Callable[[], GritLM], options: RayOptions = RayOptions()):
        try:
            import ray
        except ImportError:
            raise GritError(
                "--ray needs the extra 'ray' here and on every node: pip install 'grit-jax[ray]'"
            ) from None
        self._load, self._ray = load, ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _check_address(options.address)
        try:
            # The actors' errors come as exceptions; their logs hold those of libtpu as well.
            ray.init(
                address=options.address,
                logging_level="WARNING",
                log_to_driver=False,
                ignore_reinit_error=True,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(options.address, str(error).splitlines()[0][:200]) from None
        try:
            self._device = self._choose(options)
        except GritError:
            ray.shutdown()
            raise
        self._first: Any = None

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._release()
        self._ray.shutdown()

    def open_model(self) -> GritLM:
        """What this process must know of the model, read by an actor: this process needs no device.
        Its `encoder` runs there, for the calibration of a codec.

        Raises:
          GritError: the model cannot be opened there.
        """
        actor_class = self._ray.remote(**self._device.options)(_ModelActor)
        self._first = actor_class.remote(self._load)
        facts = self._get(self._first.facts.remote())
        device = self._device
        say(f"ray: {device.actors} actors, each with {device.name}; JAX runs on {facts.platform}")
        if "CPU" not in device.name and facts.platform == "cpu":
            say(
                f"warning: an actor with {device.name} runs on the CPU; install the extra cuda or"
                " tpu on the nodes"
            )
        return cast(GritLM, RemoteModel(facts, _RemoteEncoder(self._first, self._get)))

    def encode(
        self,
        blocks: list[int],
        job: BlockJob,
        settings: BlockSettings,
        shards: BlobStore,
        check: Callable[[], None],
    ) -> None:
        """Encodes blocks by actors, which write their shards.

        Raises:
          GritError: of an actor: a vector that is not finite, another version or model there.
        """
        import ray.data

        if not blocks:
            return
        if self._first is None:
            self.open_model()
        facts = self._get(self._first.facts.remote())
        self._release()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        place = shards.place if is_url(shards.place) else str(Path(shards.place).absolute())
        probe = PROBE + uuid.uuid4().hex
        shards.write(probe, b"")
        setup = _Setup(settings, place, probe, facts.identity)
        for window in _windows(blocks, job):
            dataset = ray.data.from_items(window, override_num_blocks=len(window)).map_batches(
                _BlockActor,
                fn_constructor_args=(self._load, setup),
                batch_size=1,
                batch_format="numpy",
                concurrency=min(self._device.actors, len(window)),
                **self._device.options,
            )
            try:
                for _ in dataset.iter_rows():
                    check()
            except ray.exceptions.RayError as error:
                _raise(error)
        shards.delete([probe])

    def _choose(self, options: RayOptions) -> _Device:
        """What an actor takes.

        Raises:
          GritError: the cluster has less.
        """
        resources, n = self._ray.cluster_resources(), options.devices
        for kind, wanted in (("GPU", {"num_gpus": n}), ("TPU", {"resources": {"TPU": n}})):
            if count := int(resources.get(kind, 0)):
                if count < n:
                    raise GritError(
                        f"--ray-devices {n}: the cluster has {count} of {kind}; lower it"
                    )
                name = f"{n} {kind}" + ("s" if n > 1 else "")
                return _Device(name, {"num_cpus": 1, **wanted}, options.actors or count // n)
        # An actor uses all cores of its node, and takes them all, so that no other comes there.
        cores = [int(n["Resources"].get("CPU", 0)) for n in self._ray.nodes() if n["Alive"]]
        if not any(cores):
            raise GritError(f"--ray {options.address}: the cluster has neither devices nor CPUs")
        least = min(count for count in cores if count)
        name = "1 CPU" if least == 1 else f"{least} CPUs"
        actors = options.actors or sum(1 for count in cores if count)
        return _Device(name, {"num_cpus": least}, actors)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            _raise(error)

    def _release(self) -> None:
        """Frees the device of the first actor."""
        if self._first is not None and self._ray.is_initialized():
            self._ray.kill(self._first)
        self._first = None


def _check_address(address: str) -> None:
    """Raises GritError where nothing listens: Ray would try for many minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from None


def _no_cluster(address: str, reason: str) -> GritError:
    return GritError(
        f"--ray {address}: there is no cluster ({reason}); give HOST:PORT of one, or local to start"
        " one on this machine"
    )


def _windows(blocks: list[int], job: BlockJob) -> Iterator[list[dict[str, str]]]:
    """The blocks as rows of Ray Data, so many together as its memory may hold."""
    window: list[dict[str, str]] = []
    size = 0
    for block in blocks:
        texts, names = job.texts(block)
        row = {
            "shard": job.names[block],
            "texts": json.dumps(texts),
            "names": json.dumps(names),
        }
        if window and size + len(row["texts"]) > WINDOW_CHARACTERS:
            yield window
            window, size = [], 0
        window.append(row)
        size += len(row["texts"])
    if window:
        yield window


def _raise(error: BaseException) -> NoReturn:
    """Raises the GritError that an actor's failure stems from, or what it is in one line."""
    texts: list[str] = []
    cause: Any = error
    while isinstance(cause, BaseException) and len(texts) < 8:
        texts.append(str(cause))
        cause = cause.__cause__ or getattr(cause, "cause", None)
    for line in "\n".join(texts).splitlines():  # Ray's errors have the actor's trace as their text
        before, found, message = line.partition(f"{GritError.__name__}: ")
        if found and " " not in before:
            raise GritError(message) from None
    lines = str(error).strip().splitlines()
    raise GritError(f"ray: {type(error).__name__}: {lines[-1] if lines else error!r}") from error


# ---- on the nodes --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What the process that joins must know of a model, and the versions that it was read with."""

    config: ModelConfig
    dtype: str
    platform: str
    chat: ChatFormat
    mode: AttentionMode
    pooling: PoolingMethod
    embedding_width: int
    weights_hash: str
    versions: tuple[str, ...]

    @classmethod
    def of(cls, model: GritLM) -> ModelFacts:
        """The facts of an open model."""
        versions = tuple(f"{name} {importlib.metadata.version(name)}" for name in VERSIONED)
        return cls(
            model.config,
            model.dtype,
            jax.local_devices()[0].platform,
            model.chat,
            model.mode,
            model.pooling,
            model.embedding_width,
            model.weights_hash,
            versions,
        )

    @property
    def identity(self) -> tuple[str, ...]:
        """Of the model and the versions, to be compared among the nodes."""
        return (model_identity(cast(GritLM, self)), *self.versions)


VERSIONED = ("grit-jax", "jax")  # packages that all nodes must have in the same version


class RemoteModel:
    """The facts of a model that an actor holds, under the names of `GritLM`."""

    def __init__(self, facts: ModelFacts, encoder: _RemoteEncoder):
        self.config, self.dtype, self.chat = facts.config, facts.dtype, facts.chat
        self.mode = facts.mode
        self.pooling, self.embedding_width = facts.pooling, facts.embedding_width
        self.weights_hash, self.encoder = facts.weights_hash, encoder


class _RemoteEncoder:
    """The encoder of a model that an actor holds."""

    def __init__(self, actor: Any, get: Callable[[Any], Any]):
        self._actor, self._get = actor, get

    def format(self, *arguments: Any, **options: Any) -> Any:
        """As `Encoder.format`."""
        return self._get(self._actor.format.remote(*arguments, **options))

    def encode_ids(self, *arguments: Any, **options: Any) -> Any:
        """As `Encoder.encode_ids`."""
        return self._get(self._actor.encode_ids.remote(*arguments, **options))


class _ModelActor:
    """Holds a model, for what is asked before the blocks are encoded."""

    def __init__(self, load: Callable[[], GritLM]):
        self._model = load()

    def facts(self) -> ModelFacts:
        return ModelFacts.of(self._model)

    def format(self, *arguments: Any, **options: Any) -> Any:
        return self._model.encoder.format(*arguments, **options)

    def encode_ids(self, *arguments: Any, **options: Any) -> Any:
        return self._model.encoder.encode_ids(*arguments, **options)


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What the actors encode with and where they write; `probe` is a blob that is there."""

    settings: BlockSettings
    place: str
    probe: str
    identity: tuple[str, ...]


class _BlockActor:
    """Encodes blocks and writes their shards, on its own device."""

    def __init__(self, load: Callable[[], GritLM], setup: _Setup):
        self._shards = BlobStore(setup.place)
        if self._shards.read(setup.probe) is None:
            raise GritError(
                f"{setup.place} is not the same place on node {platform.node()}; name a folder or"
                " bucket that all nodes share with --shards"
            )
        model = load()
        own = ModelFacts.of(model).identity
        if own != setup.identity:
            pairs = zip(own[1:], setup.identity[1:], strict=True)
            different = [f"{a} and {b}" for a, b in pairs if a != b]
            raise GritError(
                f"--ray: the nodes have {', '.join(different) or 'different models'}; give all of"
                " them the same versions and the same model"
            )
        self._encode = setup.settings.encoder(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for name, texts, names in zip(batch["shard"], batch["texts"], batch["names"], strict=True):
            pack = self._encode(json.loads(str(texts)), json.loads(str(names)))
            self._shards.write(str(name), pack().to_bytes())
        return {"shard": batch["shard"]}

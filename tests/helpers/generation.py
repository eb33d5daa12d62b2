"""`decode.generate` with its options as keywords."""

from __future__ import annotations

from typing import Any

from grit_jax.inference import decode


def generate(params, config, prompts, **arguments: Any) -> decode.Generation:
    """`decode.generate`; keywords that are fields of `DecodeOptions` become its `options`."""
    fields = decode.DecodeOptions.__dataclass_fields__
    options = {name: arguments.pop(name) for name in list(arguments) if name in fields}
    options["eos_ids"] = tuple(options.get("eos_ids", ()))
    return decode.generate(
        params, config, prompts, options=decode.DecodeOptions(**options), **arguments
    )

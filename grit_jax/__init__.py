"""grit_jax: one language model that embeds and generates, with answers over cached documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["GritLM", "__version__"]

if TYPE_CHECKING:
    from grit_jax.inference.model import GritLM


def __getattr__(name: str) -> Any:
    """`GritLM` on first use, so that `import grit_jax` (and `grit --help`) stays quick."""
    if name == "GritLM":
        from grit_jax.inference.model import GritLM

        return GritLM
    raise AttributeError(f"module 'grit_jax' has no attribute {name!r}")

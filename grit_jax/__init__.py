"""grit_jax: one language model that embeds and generates, with answers over cached documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grit_jax.lazy import lazy_names

__version__ = "0.1.0"
# Imported on first use, so that `import grit_jax` (and `grit --help`) stays quick.
__all__, __getattr__, __dir__ = lazy_names(
    __name__, {"GritError": "errors", "GritLM": "inference.model"}
)

if TYPE_CHECKING:
    from grit_jax.errors import GritError as GritError
    from grit_jax.inference.model import GritLM as GritLM

"""Measurements of this machine."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "RagTiming": "rag",
        "Rates": "lower_bound",
        "bench_decode": "throughput",
        "bench_encode": "throughput",
        "bench_rag": "rag",
        "bench_train": "throughput",
        "measure_rates": "lower_bound",
    },
)

"""Data room: formats, tokenizer, packing, pipeline and the quickstart corpus."""

"""Hugging Face directories: configuration, weights and PEFT adapters, in and out."""

"""`python -m grit_jax` is `grit`."""

from grit_jax.cli import main

if __name__ == "__main__":
    main()

"""`python -m grit_jax` is `grit`."""

from grit_jax.cli.main import main

if __name__ == "__main__":
    main()

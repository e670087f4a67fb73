"""`python -m hubprune` is the `hubprune` command."""

from hubprune.cli import main

if __name__ == "__main__":
    main()

"""`python -m meshgate`, for whoever has an interpreter and no PATH."""

from meshgate.cli import main

main()

"""`python -m vsparse`."""

from vsparse.cli import main

main()

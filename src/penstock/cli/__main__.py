"""``python -m penstock.cli``: the same as the ``penstock`` command."""

from penstock.cli import main

main()

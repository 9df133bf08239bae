"""`python -m nuclora`: the command, where the environment's scripts are not on the path."""

from nuclora.cli.main import run

run()

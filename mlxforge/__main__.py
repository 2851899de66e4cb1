"""``python -m mlxforge``."""

from mlxforge.cli.main import main

main()

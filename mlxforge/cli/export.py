"""``mlxforge export``: what was trained, for the programs that run it."""

from __future__ import annotations

import click

from mlxforge.cli.lazy import Commands, Table

COMMANDS: Table = {
    "gguf": ("mlxforge.cli.export_gguf", "A GGUF file for llama.cpp, verified."),
    "ollama": ("mlxforge.cli.export_ollama", "GGUF and a Modelfile for Ollama, folders for LM Studio."),
    "peft": ("mlxforge.cli.export_peft", "An adapter as PEFT reads it."),
    "mlx": ("mlxforge.cli.export_mlx", "A quantized folder for MLX."),
    "hub": ("mlxforge.cli.export_hub", "A repository on the Hugging Face hub, with a model card."),
}


@click.group(cls=Commands, table=COMMANDS)
def export() -> None:
    """Write a run or a model as others read it: GGUF, Ollama, PEFT, MLX, the hub."""

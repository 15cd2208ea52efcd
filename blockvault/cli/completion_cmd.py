"""``blockvault completion``: print the script that teaches a shell our commands."""

from __future__ import annotations

import click

from blockvault.cli import output
from blockvault.cli.common import command


@command(
    "completion",
    examples={
        'eval "$(blockvault completion bash)"': "Complete in this bash; put it in ~/.bashrc.",
        "blockvault completion zsh > ~/.zfunc/_blockvault": "Install for zsh (fpath has ~/.zfunc).",
        "blockvault completion fish | source": "Complete in this fish.",
    },
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def run(shell: str) -> None:
    """Print a script that completes commands in a shell.

    Commands, options, branches, tags, revisions and volumes are completed; the names are read from
    the vault around the working directory.
    """
    from blockvault.cli.complete import script
    from blockvault.cli.main import COMPLETE_VAR, program

    output.write(script(program, COMPLETE_VAR, shell).rstrip("\n"))

"""The reference page of all commands, generated from their help.

`python -m sounding.cli.reference > docs/commands.md` writes it; a test compares the two.
"""

from collections.abc import Iterator

import click

from sounding.cli import cli

_HEAD = """# Commands

`scripts/sounding COMMAND --help` prints the same in a terminal. In a checkout the command is
`scripts/sounding`, after `pip install` it is `sounding`. This page is generated:
`python -m sounding.cli.reference > docs/commands.md`.
"""
_WIDTH = 88


def page() -> str:
    """Every command with its help, in Markdown."""
    commands = list(_commands(cli, "sounding"))
    table = "\n".join(
        f"| [`{path}`](#{path.replace(' ', '-')}) | {command.get_short_help_str(200)} |"
        for path, command in commands
    )
    parts = [_HEAD, f"| command | what it does |\n|---|---|\n{table}\n"]
    for path, command in commands:
        context = click.Context(command, info_name=path, terminal_width=_WIDTH)
        parts.append(f"## {path}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group with its full name, in the order of the help."""
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


if __name__ == "__main__":
    click.echo(page(), nl=False)

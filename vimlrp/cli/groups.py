"""A group of commands of which one runs where none is named."""

import click

__all__ = ["DefaultGroup"]


class DefaultGroup(click.Group):
    """A group whose hidden command `run` takes what names no other command.

    `audit photos/` is `audit run photos/`; a folder that is called like a command is given as
    `./index`.
    """

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front where the arguments begin with no command."""
        own = {*ctx.help_option_names, *self.commands}
        if args and args[0] not in own:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

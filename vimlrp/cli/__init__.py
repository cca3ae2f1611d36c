"""The command line: the library's verbs."""

import click

from vimlrp.cli import audit, doctor, evaluate, explain, models

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vimlrp")
def main() -> None:
    """Explain Vision Mamba image classifiers."""


for _module in (explain, evaluate, audit, models, doctor):
    main.add_command(_module.command)

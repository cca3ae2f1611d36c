"""The command line: the library's verbs."""

import click

from vimlrp.cli.doctor import doctor
from vimlrp.cli.explain import explain
from vimlrp.cli.models import models

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vimlrp")
def main() -> None:
    """Explain Vision Mamba image classifiers."""


main.add_command(explain)
main.add_command(models)
main.add_command(doctor)

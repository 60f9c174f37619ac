"""The application that verbs register with: each verb is a file of its name that decorates a function with `app.command`."""

import typer

app = typer.Typer(
    help="Train few-bit networks, run them as spiking networks in T = 2^b - 1 steps, and see exactly how far spikes are off.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

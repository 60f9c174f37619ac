"""The application that verbs register with: each verb is a file with a function decorated by `app.command`."""

from collections.abc import Sequence
from dataclasses import fields
from importlib import metadata
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nbsnn import console
from nbsnn.errors import ConfigError, shown, unknown
from nbsnn.recipe import Recipe

_SETTINGS = {setting.name for setting in fields(Recipe)}


class _Verbs(TyperGroup):
    """Verbs by name, in the order of registration; for an unknown one, close matches are suggested."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise ConfigError(unknown("verb", args[0], self.commands) + "; see nbsnn --help")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Verbs,
    subcommand_metavar="VERB ...",
    add_completion=False,
    rich_markup_mode=None,  # plain text, for pipes and narrow terminals, and to preserve the lines of examples
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.say(f"nbsnn {metadata.version('nbsnn')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def nbsnn(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train low-bit networks, run them as spiking networks in T = 2^b - 1 steps, and measure the error of the spikes."""
    if context.invoked_subcommand is None:
        console.say(context.get_help())


def run(words: Sequence[str]) -> Any:
    """Run the verb at the start of the arguments; returns an exit code or None.

    Raises:
        ConfigError: the verb does not take these arguments.
    """
    for word in words:
        if "\0" in word:
            raise ConfigError(f"{word.replace(chr(0), chr(92) + '0')}: an argument holds a NUL character")
    try:
        return app(args=list(words), prog_name="nbsnn", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not from the option parser
            raise
        raise ConfigError(_usage(error, words)) from None


def _usage(error: Any, words: Sequence[str]) -> str:
    """An error of the option parser in one line: what was given, what is valid, and where to find help."""
    context = error.ctx
    verb = words[0] if words and words[0] in typer.main.get_command(app).commands else ""  # type: ignore[attr-defined]
    where = f"see nbsnn {verb} --help".replace("  ", " ")
    if hasattr(error, "possibilities"):
        options = [option for parameter in context.command.params for option in (*parameter.opts, *parameter.secondary_opts)]
        return f"{unknown('option', error.option_name, [o for o in options if o.startswith('--')])}; {where}"
    names = getattr(getattr(error, "param", None), "opts", [])
    given = [(word, value) for word, value in pairwise(words) if word in names]
    given += [(name, value) for name, _, value in (word.partition("=") for word in words) if name in names and value]
    if given and error.message:
        reason = error.message.partition(",")[0].rstrip(".")
        return f"{given[-1][0]} {shown(given[-1][1])}: {reason[0].lower()}{reason[1:]}; {where}"
    return f"{error.format_message().rstrip('.')}; {where}"


def flags_of(words: Sequence[str]) -> dict[str, console.Flag]:
    """The options of the verb at the start of the arguments, by the names of the library's arguments."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verb = commands.get(words[0]) if words else None
    flags = {}
    for option in verb.params if verb else ():
        long = next((name for name in option.opts if name.startswith("--")), None)
        name = (long or "").removeprefix("--").replace("-", "_")
        # A setting of the recipe may come from its file or from --set: then the option has nothing to do with it.
        if long and (name not in _SETTINGS or any(word.partition("=")[0] == long for word in words)):
            flags[name] = console.Flag(long, *option.secondary_opts[:1])
    return flags

"""The application that verbs register with: each verb is a file of its name that decorates a function with `app.command`."""

import re
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nbsnn import console
from nbsnn.errors import ConfigError, unknown

_SETTING = re.compile(r"""(?<![\w.-])([a-z][a-z_]*)=(True|False|"[^"]*"|'[^']*'|[^\s,;:()"']+)?""")


class _Verbs(TyperGroup):
    """Verbs by name, in the order in which they were registered; close matches of an unknown one are suggested."""

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
    rich_markup_mode=None,  # plain text, for pipes, narrow terminals, and examples that keep their lines
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def nbsnn(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train few-bit networks, run them as spiking networks in T = 2^b - 1 steps, and see exactly how far spikes are off."""
    if version:
        console.say(f"nbsnn {metadata.version('nbsnn')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.say(context.get_help())


def run(words: Sequence[str]) -> Any:
    """Run the verb that the words begin with; the result is an exit code or nothing.

    Raises:
        ConfigError: the words are not what the verb takes.
    """
    for word in words:
        if "\0" in word:
            raise ConfigError(f"{word.replace(chr(0), chr(92) + '0')}: an argument holds a NUL character")
    try:
        return app(args=list(words), prog_name="nbsnn", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not of the option parser
            raise
        raise ConfigError(_usage(error)) from None


def _usage(error: Any) -> str:
    """An error of the option parser in one line, with close matches for an unknown option."""
    context = error.ctx
    where = f"see {context.command_path if context else 'nbsnn'} --help"
    if hasattr(error, "possibilities"):
        options = [option for parameter in context.command.params for option in (*parameter.opts, *parameter.secondary_opts)]
        long = [option for option in options if option.startswith("--")]
        return f"{unknown('option', error.option_name, long)}; {where}"
    return f"{error.format_message().rstrip('.')}; {where}"


def in_options(message: str, words: Sequence[str]) -> str:
    """An error of the library with the options of the verb in the place of arguments: `overwrite=True` → `--overwrite`."""
    verb = typer.main.get_command(app).commands.get(words[0]) if words else None  # type: ignore[attr-defined]
    options = {}
    for parameter in verb.params if verb else ():
        names = [option for option in parameter.opts if option.startswith("--")]
        if names:
            options[names[0].removeprefix("--").replace("-", "_")] = (names[0], (parameter.secondary_opts or [""])[0])

    def option(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip("\"'")
        if name not in options:
            return found[0]
        yes, no = options[name]
        if value in ("True", "False"):
            return yes if value == "True" else no or f"no {yes}"
        return f"{yes} {value}".rstrip()

    return _SETTING.sub(option, message)

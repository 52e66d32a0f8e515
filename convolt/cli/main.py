"""`convolt`: reads the command line, calls the verb, and turns errors into one message and an exit code.

Exit codes: 0 done; 1 it failed; 2 the command line is wrong; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from convolt import __version__
from convolt.cli import data, doctor, evaluate, export, inspect, lr_find, models, options, plan, predict, say, summary, train, verify_resume
from convolt.errors import ArgumentError, ArgumentTypeError, ConvoltError, did_you_mean

_ALONE = {"--gpustat": ("on", tuple(options.Switch)), "--measure": ("predict", tuple(models.Measured))}
"""Option → what it means without a value, and its values."""

UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""What the parser raises for a wrong command line; Typer itself does not export it."""

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="convolt",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="For example: [b]convolt train cnn --data digits[/b]",
)
for _verb in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    export.export,
    models.models,
    summary.summary,
    lr_find.lr_find,
    plan.plan,
    inspect.inspect,
    verify_resume.verify_resume,
    doctor.doctor,
):
    app.command()(_verb)
app.add_typer(data.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"convolt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (goes anywhere in the line).")] = False,
) -> None:
    """Train, evaluate and use image models."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code.

    Args:
        argv: the arguments without the program's name; None: those of the process.
    """
    arguments = normalized(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in _options_of(arguments)
    command = typer.main.get_command(app)
    try:
        arguments = [a for i, a in enumerate(arguments) if a != "--debug" or i >= len(_options_of(arguments))]
        _check_repeated(command, arguments)
        with say.spoken_warnings():
            code = command.main(arguments, prog_name="convolt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        return _misused(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        _say("Stopped.")
        return INTERRUPTED
    except BrokenPipeError:  # `convolt … | head`
        return _pipe_closed()
    except (ConvoltError, OSError) as error:
        if debug:
            traceback.print_exc()
        _say(str(error))
        return MISUSED if isinstance(error, (ArgumentError, ArgumentTypeError)) else FAILED


def normalized(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `-` for each `_` in the names of options: `--batch_size=64` → `--batch-size=64`."""
    found: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[index:]]
        if argument.startswith("--"):
            name, sign, value = argument.partition("=")
            argument = name.replace("_", "-") + sign + value
            alone, values = _ALONE.get(argument, ("", ()))
            if alone and not set(arguments[index + 1 : index + 2]) & set(values):
                argument += f"={alone}"
        found.append(argument)
    return found


def _options_of(arguments: Sequence[str]) -> Sequence[str]:
    """Returns the arguments before `--`, after which nothing is an option."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _check_repeated(command: Any, arguments: Sequence[str]) -> None:
    """Refuses an option that is given twice (`--lr 0.1 --learning-rate 0.2`): one of the two would be ignored.

    Raises:
        UsageError: an option that takes one value was given several.
    """
    verb = next((command.commands[a] for a in arguments if a in command.commands), None)
    parameters = (
        {} if verb is None else {name: p for p in verb.params for name in [*p.opts, *p.secondary_opts] if name.startswith("-")}
    )
    given: dict[str, str] = {}
    for argument in _options_of(arguments):
        name = argument.partition("=")[0]
        parameter = parameters.get(name)
        if parameter is None or parameter.multiple:
            continue
        if parameter.name in given:
            raise UsageError(
                f"{given[parameter.name]} and {name} are the same option: give it once."
                if given[parameter.name] != name
                else f"{name} is given twice: give it once."
            )
        given[parameter.name] = name


def _given(parameter: Any, arguments: Sequence[str]) -> str | None:
    """Returns the text that was given for an option, which not every version of the parser repeats in its message."""
    for index, argument in enumerate(arguments):
        name, sign, value = argument.partition("=")
        if name in parameter.opts:
            return value if sign else (arguments[index + 1] if index + 1 < len(arguments) else None)
    return None


def _misused(error: Any, arguments: Sequence[str]) -> int:
    """Prints what is wrong with the command line, the nearest right word, and where help is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return MISUSED
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if hasattr(error, "option_name") and type(error).__name__ == "NoSuchOption" and context is not None:
        known = [
            name
            for parameter in context.command.params
            for name in [*parameter.opts, *parameter.secondary_opts]
            if name.startswith("--")
        ]
        message = f"No such option: {error.option_name}. {did_you_mean(error.option_name, [*known, '--help'])}"
    elif match := re.match(r"No such command ['\"](.*?)['\"]", message):
        known = list(context.command.commands) if context is not None else []
        message = f"No such command: {match[1]}. {did_you_mean(match[1], known)}"
    elif (
        (parameter := getattr(error, "param", None)) is not None
        and (given := _given(parameter, arguments))
        and given not in message
    ):
        message = f"{message.rstrip('.')}, but got {given!r}."
    path = context.command_path if context is not None else "convolt"
    message = message.replace("Value error, ", "")  # of the library below the parser, which not every version says
    if choices := re.search(r"'([^']*)' is not one of ('.*')\.$", message):
        near = did_you_mean(choices[1], re.findall(r"'([^']+)'", choices[2]))
        message += f" {near}" if near.startswith("Did") else ""
    _say(message)
    print(f"Help: {path} --help", file=sys.stderr)
    return MISUSED


def _say(message: str) -> None:
    """Prints an error on standard error, in one piece."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("convolt: ", "bold red"), message))


def _pipe_closed() -> int:
    """Ends quietly when the reader of our output is gone; standard output must not be flushed once more."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0

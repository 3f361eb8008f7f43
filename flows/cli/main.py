"""`prefloop`: the commands, each imported only when it is called.

Exit codes, of every command:
    0    done
    1    something failed that has no code of its own
    2    a wrong or unknown key, value, option or stage
    3    a file or row that cannot be used
    4    a model folder, tokenizer or checkpoint that cannot be used
    5    training cannot go on: a NaN, nothing to train on
    6    the workspace cannot be used now: another run is live, outputs changed by hand, disk full
    7    a worker, a server or storage was away for longer than retries last; run again to go on
    137  a stage was killed from outside, each time that it was tried
    130  stopped by Ctrl-C; 143  stopped by SIGTERM. Run again to go on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from prefloop.errors import PrefloopError
from prefloop.printable import printable
from tasks.support.redact import redact

COMMANDS = {
    "run": "run the pipeline, or some of its stages",
    "plan": "what would run, and why",
    "status": "what is running, what is there, how the policies compare",
    "watch": "run when data changes",
    "data": "bring in your own data",
    "accept": "keep results although the code changed",
    "compare": "what differed between runs, and which is better",
    "trace": "what made a model, and which models have seen a row",
    "rebuild": "make a model again elsewhere, and compare",
    "promote": "decide which policy is champion",
    "export": "a folder that other programs serve",
    "chat": "talk to a trained model",
    "gc": "free what nothing needs any more",
    "doctor": "check the installation",
}


class Commands(TyperGroup):
    """Finds commands by name and imports a command's module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if importlib.util.find_spec(f"flows.cli.{name}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"flows.cli.{cmd_name}")
        return to_click(cmd_name, module)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


def to_click(name: str, module: Any) -> Any:
    """The command-line command of a command's module: its typer `app`, or its function `command`."""
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(name, epilog=getattr(module, "EPILOG", None))(module.command)
    return typer.main.get_command(app)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def prefloop() -> None:
    """prefloop: RLHF as a pipeline, from raw preferences to a compared, registered model.

    Example: prefloop plan; prefloop run --set ppo.kl_coef=0.1; prefloop chat ppo
    """


def main() -> None:
    """Entry point of the console script: errors that a user can mend are shown without a traceback."""
    try:
        typer.main.get_command(app)(prog_name="prefloop")
    except PrefloopError as error:
        if os.environ.get("PREFLOOP_DEBUG"):
            raise
        print(f"prefloop: {printable(redact('error', error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()

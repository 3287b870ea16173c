"""`noria`: the command line. Each command's module is imported when it is called (`noria --help` ≤ 0.3 s)."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

import click

from noria import __version__
from noria.contracts.error import ConfigError, NoriaError

COMMANDS = {
    "up": ("noria.cli.up", "Start the service: gateway, keeper, console, local models."),
    "demo": ("noria.cli.demo", "See the wheel turn once: traffic, drift, tuned model, gate, canary, rollback."),
    "validate": ("noria.cli.validate", "Check noria.yaml; every error names file, line and key."),
    "plan": ("noria.cli.apply", "Show what noria.yaml would change in the running service."),
    "apply": ("noria.cli.apply", "Put noria.yaml in force without a restart."),
    "reload": ("noria.cli.operate", "Apply noria.yaml and replace the workers, one by one."),
    "upgrade": ("noria.cli.operate", "Go over to the installed version without closing a socket."),
    "drain": ("noria.cli.operate", "Tell load balancers to look elsewhere."),
    "doctor": ("noria.cli.doctor", "Say in words what is well and what is wrong here."),
    "models": ("noria.cli.models", "Fetch and list the models that run on this machine."),
    "chat": ("noria.cli.chat", "Talk to an app from the terminal."),
    "replay": ("noria.cli.replay", "Send a JSONL file of prompts through an app."),
    "keys": ("noria.cli.keys", "API keys: create, list, show, update, rotate, revoke."),
    "orgs": ("noria.cli.orgs", "Organisations: add, list, remove."),
    "teams": ("noria.cli.teams", "Teams of an organisation: add, list, remove."),
    "users": ("noria.cli.users", "Users, who may be in several teams: add, list, update, remove."),
    "budgets": ("noria.cli.budgets", "Budgets: create, list, show, delete."),
    "limits": ("noria.cli.limits", "Limits: create, list, show, delete, and how each stands."),
    "cost": ("noria.cli.cost", "What was spent, at which prices, and whether the invoice agrees."),
    "cache": ("noria.cli.cache", "Answers that are kept to be given again: show, purge."),
    "eval": ("noria.cli.evaluate", "Measure releases by suites, compare them, write reports."),
    "batch": ("noria.cli.batch", "Batches: create, list, show, cancel, results."),
    "adapt": ("noria.cli.adapt", "Train a model on a dataset; watch, stop, resume, check it."),
    "jobs": ("noria.cli.jobs", "Work that was given up: list it, have it tried again."),
    "release": ("noria.cli.release", "Releases: create, compare, roll out, promote, roll back, retire."),
    "sbom": ("noria.cli.sbom", "What this installation is made of (CycloneDX)."),
    "data": ("noria.cli.data", "Datasets: import, harvest, clean, dedup, label, version, verify, diff, export, leak."),
    "trace": ("noria.cli.trace", "What the service did: list, show, export."),
    "feedback": ("noria.cli.feedback", "What was said of answers: list, add."),
    "drift": ("noria.cli.drift", "Whether the traffic of an app has changed, and how."),
    "refresh": ("noria.cli.refresh", "Turns of the wheel: from what people corrected to the next release."),
    "process": ("noria.cli.process", "One process of the service (started by `noria up`)."),
}
HIDDEN = {"process"}


class Commands(click.Group):
    """Lists every command without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The names, in the order of a newcomer's day."""
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name][0])
        command = getattr(module, "command", None) or getattr(module, cmd_name)  # one command a module, or several by name
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command list of `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="noria")
def cli() -> None:
    """Serve large language models as a service you own; turn its traffic into the next, better model."""


def main() -> None:
    """Entry point. Exit 0, 1 (a failed verdict or operation), 2 (usage or configuration)."""
    # Imports make many objects and nearly no garbage, and nothing on the way of a request makes reference cycles; what a
    # batch or a burst holds for a moment is thousands of objects. With the default of 700, a tenth of a start and a third
    # of the keeper's time went into looking through them.
    gc.set_threshold(50_000, 20, 20)
    try:
        code = cli.main(standalone_mode=False)  # click returns the code of an `Exit` instead of raising it
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(2)
    except NoriaError as e:
        click.echo(f"noria: {e if isinstance(e, ConfigError) else e.text}", err=True)
        sys.exit(2 if isinstance(e, ConfigError) else 1)
    except BrokenPipeError:
        sys.exit(141)
    finally:
        gc.freeze()  # the process ends: nothing is won by looking through all of it once more (0.1 s for the keeper)

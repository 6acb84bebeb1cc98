"""The command `mi-multilingual`: parse, call, print.

The commands import what they call when they run, so that `--help` comes at once.
"""

import sys

import typer

from . import steps, studies, sweeps

HELP = """
Find the neurons of a multilingual language model that belong to one language, switch them off, and look.

The main job on the embedded model and text:

    mi-multilingual demo

The same on a model that others trained, SmolLM2-135M-Instruct:

    mi-multilingual real

The same step by step on your own model and a folder of <language>.txt files:

    mi-multilingual record gpt2 my-texts --out run/stats.safetensors

    mi-multilingual identify run/stats.safetensors --out run/neurons.safetensors

    mi-multilingual ablate gpt2 my-other-texts run/neurons.safetensors --out run/matrix.parquet

    mi-multilingual report run

Other ways to find neurons, what each needs and can be asked for:

    mi-multilingual detectors

A whole experiment of a paper, and the names of all of them:

    mi-multilingual study representations demo --out runs/representations

    mi-multilingual studies

Hundreds of such measurements from one file, stopped and resumed at will:

    mi-multilingual plan study.yaml

    mi-multilingual run study.yaml --set rate=0.05

A mistake is told in one line; --debug shows where it happened.
"""

COMMANDS = (
    steps.demo,
    steps.real,
    steps.record,
    steps.detectors,
    steps.identify,
    steps.ablate,
    steps.compare,
    steps.evaluate,
    steps.report,
    studies.studies,
    studies.study,
    sweeps.plan,
    sweeps.run,
    sweeps.resume,
    sweeps.status,
)

INTERRUPTED = 130  # the exit code of Ctrl-C, as shells have it

app = typer.Typer(help=HELP, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for command in COMMANDS:
    app.command()(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on stderr and exit code 1, its trace shown with --debug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"])
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("stopped; `record`, `run` and `resume` go on where they were when called again", file=sys.stderr)
        return int(stop.code or 0)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0

"""`tensorguard agent`: run the agent of a robot, import recordings, see what it holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tensorguard.agent.config import AgentConfig
    from tensorguard.agent.spool import Progress
    from tensorguard.settings import Settings

app = typer.Typer(
    help="Run the agent of a robot, import recordings, see what it holds.", no_args_is_help=True
)

Dir = Annotated[
    Path | None, typer.Option("--dir", help="Folder of the agent; overrides TG_AGENT_DIR.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _settings(folder: Path | None) -> Settings:
    from dataclasses import replace

    from tensorguard.gates import Role, enforce
    from tensorguard.settings import Settings

    settings = Settings.from_environment()
    if folder is not None:
        settings = replace(settings, agent_dir=folder.absolute())
    return enforce(settings, Role.agent)


def config_for(folder: Path | None) -> AgentConfig:
    """Return the configuration of the agent in a folder, if the gates let it be used."""
    from tensorguard.agent.config import AgentConfig

    return AgentConfig.of(_settings(folder))


@app.command()
def run(
    folder: Dir = None,
    url: Annotated[
        str | None, typer.Option(help="Platform to enrol at; overrides TG_AGENT_URL.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name to enrol under; overrides TG_AGENT_NAME.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the enrolment token; overrides TG_AGENT_TOKEN_FILE."),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Take JSON lines from standard input, too.")
    ] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when standard input has ended and all is sent.")
    ] = False,
    use_socket: Annotated[
        bool, typer.Option("--socket/--no-socket", help="Take JSON lines from the Unix socket.")
    ] = True,
    use_machine: Annotated[
        bool, typer.Option("--system/--no-system", help="Record the machine's own metrics.")
    ] = True,
) -> None:
    """Spool samples and deliver them until told to stop. Exits with 78 when a gate refuses."""
    from dataclasses import replace

    from tensorguard.agent.config import AgentConfig
    from tensorguard.agent.notify import Notifier
    from tensorguard.agent.run import run as run_agent
    from tensorguard.gates import Role, enforce
    from tensorguard.observability import logs

    settings = _settings(folder)
    settings = replace(
        settings,
        agent_url=url or settings.agent_url,
        agent_name=name or settings.agent_name,
        agent_token_file=token_file or settings.agent_token_file,
    )
    enforce(settings, Role.agent)
    logs.configure(settings.log_level)
    run_agent(
        AgentConfig.of(settings),
        stdin=sys.stdin.fileno() if stdin else None,
        use_socket=use_socket,
        use_machine=use_machine,
        drain=drain,
        notifier=Notifier.of(settings),
    )


@app.command("import")
def import_recording(
    file: Annotated[Path, typer.Argument(help="An MCAP file: JSON, protobuf or ROS 2 messages.")],
    folder: Dir = None,
    deliver: Annotated[
        bool, typer.Option("--deliver/--no-deliver", help="Deliver, or only fill the spool.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Spool every number of a recording and deliver it; run again, it goes on where it stopped."""
    import signal
    from threading import Event

    import msgspec
    from rich.console import Console

    from tensorguard.agent.imports import import_and_deliver

    config = config_for(folder)
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Console(stderr=True).status(f"reading {file.name}") as line:

        def report(progress: Progress) -> None:
            line.update(f"{progress.messages} messages, {progress.samples} samples")

        done = import_and_deliver(
            file,
            config,
            stop=stop,
            report=report,
            waiting=lambda left: line.update(f"{left} samples wait for the platform"),
            deliver=deliver,
        )
    if as_json:
        typer.echo(msgspec.json.encode(done).decode())
    else:
        typer.echo(
            f"imported {done.messages} messages as {done.samples} samples; {done.skipped} values "
            f"left out, {done.spooled} samples wait"
        )


@app.command()
def status(folder: Dir = None, as_json: AsJson = False) -> None:
    """Show what is spooled, acknowledged, dropped and dead."""
    import msgspec

    from tensorguard.agent import status as reading

    found = reading.status(config_for(folder))
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        typer.echo("\n".join(reading.lines(found)))


@app.command()
def unit() -> None:
    """Print the systemd unit: `tensorguard agent unit > /etc/systemd/system/…`."""
    from importlib import resources

    name = "tensorguard-agent.service"
    typer.echo(resources.files("tensorguard.agent").joinpath(name).read_text(), nl=False)

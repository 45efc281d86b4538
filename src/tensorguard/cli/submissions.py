"""`tensorguard submissions`: what was refused for good, at an agent or at the platform.

Without `--url` the agent's spool is meant: `--dir` or TG_AGENT_DIR.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tensorguard.agent.dead import DeadLetter
    from tensorguard.agent.spool import Spool
    from tensorguard.sdk.submissions import SubmissionClient

app = typer.Typer(
    help="See, replay and drop samples that a platform refused for good.", no_args_is_help=True
)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", "--spool", help="Folder of the agent; overrides TG_AGENT_DIR."),
]
Url = Annotated[str | None, typer.Option(help="URL of the platform, instead of an agent.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with your session or API token, mode 0600.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of submissions.")]
Every = Annotated[bool, typer.Option("--all", help="All that are listed now.")]
Reason = Annotated[str | None, typer.Option(help="All whose reason contains this text.")]


@contextmanager
def _platform(url: str, token_file: Path | None) -> Iterator[SubmissionClient]:
    from tensorguard.sdk.submissions import SubmissionClient
    from tensorguard.sdk.token_files import read_token

    if token_file is None:
        raise typer.BadParameter("give --token-file with --url")
    secret = read_token(token_file)
    with SubmissionClient(url, lambda: secret) as client:
        yield client


@contextmanager
def _spool(folder: Path | None) -> Iterator[Spool]:
    from tensorguard.cli.agent import config_for

    inside = folder.parent if folder is not None and folder.is_file() else folder
    with config_for(inside).open_spool() as spool:
        yield spool


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise typer.BadParameter(f"{text} is not the id of a submission")
    return int(text)


def _dict(letter: DeadLetter) -> dict[str, object]:
    return {
        "id": letter.id,
        "priority": letter.priority.name,
        "code": letter.code,
        "reason": letter.reason,
        "died": letter.died,
        "sample": json.loads(letter.body),
    }


@app.command("list")
def list_submissions(
    folder: Dir = None,
    url: Url = None,
    token_file: TokenFile = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """List what was refused, one a line."""
    wanted = reason or ""
    if url is not None:
        with _platform(url, token_file) as client:
            for one in client.list():
                if wanted in one.reason:
                    typer.echo(one.raw if as_json else f"{one.id}  {one.received}  {one.reason}")
        return
    from tensorguard.agent.dead import letters

    with _spool(folder) as spool:
        for letter in letters(spool):
            if wanted in letter.reason:
                text = f"{letter.id}  {letter.priority.name:<8} {letter.code}: {letter.reason}"
                typer.echo(json.dumps(_dict(letter)) if as_json else text)


@app.command()
def show(
    submission: Annotated[str, typer.Argument(help="Id of the submission.")],
    folder: Dir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one submission with what was sent."""
    if url is not None:
        with _platform(url, token_file) as client:
            found = json.loads(client.show(submission).raw)
    else:
        from tensorguard.agent.dead import letter

        with _spool(folder) as spool:
            found = _dict(letter(spool, _number(submission)))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for name, value in found.items():
            typer.echo(f"{name:<10} {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
def replay(
    submissions: Ids = None,
    every: Every = False,
    reason: Reason = None,
    folder: Dir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Send submissions again, after the cause is gone. Exits 1 when the platform refuses one again."""
    from tensorguard.agent import dead
    from tensorguard.wire.problems import RemoteProblem

    _chosen(submissions, every=every, reason=reason)
    if url is None:
        with _spool(folder) as spool:
            count = dead.replay(spool, _numbers(spool, submissions, reason or ""))
        _tell({"replayed": count}, as_json=as_json)
        return
    done = refused = 0
    with _platform(url, token_file) as client:
        for one in _ids(client, submissions, reason or ""):
            try:
                client.replay(one)
                done += 1
            except RemoteProblem as problem:
                if problem.code not in {"submission_still_refused", "submission_not_replayable"}:
                    raise
                typer.echo(f"{one}: {problem}", err=True)
                refused += 1
    _tell({"replayed": done, "refused": refused}, as_json=as_json)
    if refused:
        raise typer.Exit(1)


@app.command()
def drop(
    submissions: Ids = None,
    every: Every = False,
    reason: Reason = None,
    folder: Dir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete submissions for good."""
    from tensorguard.agent import dead

    _chosen(submissions, every=every, reason=reason)
    if url is None:
        with _spool(folder) as spool:
            count = dead.drop(spool, _numbers(spool, submissions, reason or ""))
    else:
        with _platform(url, token_file) as client:
            ids = _ids(client, submissions, reason or "")
            count = len(ids)
            for one in ids:
                client.drop(one)
    _tell({"dropped": count}, as_json=as_json)


def _chosen(submissions: list[str] | None, *, every: bool, reason: str | None) -> None:
    if [bool(submissions), every, bool(reason)].count(True) != 1:
        raise typer.BadParameter("give ids, or --all, or --reason")


def _ids(client: SubmissionClient, submissions: list[str] | None, reason: str) -> Sequence[str]:
    return submissions or [str(one.id) for one in client.list() if reason in one.reason]


def _numbers(spool: Spool, submissions: list[str] | None, reason: str) -> Sequence[int]:
    from tensorguard.agent.dead import letters

    if submissions:
        return [_number(text) for text in submissions]
    return [letter.id for letter in letters(spool) if reason in letter.reason]


def _tell(counts: dict[str, int], *, as_json: bool) -> None:
    typer.echo(
        json.dumps(counts)
        if as_json
        else ", ".join(f"{count} {what}" for what, count in counts.items())
    )

"""Runs in a peer's own interpreter: `peer_process.py SCRIPT` answers lines of JSON with the script's `Peer`.

The first line is the network, every other one an input. It imports nothing of this package, which the
interpreter does not have.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from importlib import metadata
from typing import Any, TextIO


def serve(script: str, questions: TextIO, answers: TextIO) -> None:
    """Answer each line with a line, until there are no more."""
    peer: Any = None
    for line in questions:
        message = json.loads(line)
        answer: dict[str, Any]
        try:
            if peer is None:
                names = runpy.run_path(script)
                peer = names["Peer"](message)
                answer = {"versions": {x: metadata.version(x) for x in names["DISTRIBUTIONS"]}}
            else:
                answer = peer.infer(message["input"])
        except Exception as error:  # noqa: BLE001 -- a library's; the bench names it and goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        serve(sys.argv[1], sys.stdin, pipe)

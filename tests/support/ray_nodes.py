"""A Ray cluster of two nodes on the loopback address, as a process of its own.

Run as `python ray_nodes.py PORT CPUS CPUS`: the first node is the head. A line `kill` on standard
input ends the second node as a lost machine ends: at once. The end of the input ends the cluster.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOKEN = secrets.token_hex(32)
STORE_BYTES = 100 << 20  # of each node's object store
VARIABLES = {  # of every process that uses Ray, nodes and drivers
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # also what makes Ray bind to 127.0.0.1 alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_health_check_initial_delay_ms": "500",  # a lost node is missed after about two seconds
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Cluster:
    """A running cluster."""

    address: str
    variables: dict[str, str]
    process: subprocess.Popen[str]

    def kill_second_node(self) -> None:
        """Kill every process of the second node."""
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        self._read("killed")

    def _read(self, word: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"the cluster ended before it said {word!r}")


@contextlib.contextmanager
def cluster(port: int, *cpus: int) -> Iterator[Cluster]:
    """Start a cluster with one node for each number of `cpus`, and end it."""
    with tempfile.TemporaryDirectory(prefix="tgr") as folder:  # short: it holds Unix sockets
        (Path(folder) / "ray").mkdir()
        base = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": folder}
        variables = VARIABLES | {"RAY_TMPDIR": folder}
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(port), *map(str, cpus)],
                env=base | variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        running = Cluster(f"127.0.0.1:{port}", variables, process)
        try:
            running._read("ready")
            yield running
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def main() -> None:
    """Run the nodes of the process that the module's docstring describes."""
    from ray import cluster_utils

    port, *cpus = map(int, sys.argv[1:])
    nodes = cluster_utils.Cluster()
    added = [
        nodes.add_node(
            num_cpus=count,
            node_ip_address="127.0.0.1",
            include_dashboard=False,
            include_log_monitor=False,
            object_store_memory=STORE_BYTES,
            **({} if number else {"gcs_server_port": port}),
        )
        for number, count in enumerate(cpus)
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        assert line == "kill\n"
        nodes.remove_node(added.pop(), allow_graceful=False)
        print("killed", flush=True)
    nodes.shutdown()


if __name__ == "__main__":
    sys.exit(main())

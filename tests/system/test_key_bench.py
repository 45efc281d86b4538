"""`tensorguard bench keys` measures every installed custody beside raw `cryptography`, in one run."""

from __future__ import annotations

import json
import subprocess

from support.production import BIN, process_environment


def test_the_quick_bench_names_every_custody_and_its_bars() -> None:
    done = subprocess.run(
        [f"{BIN}/tensorguard", "bench", "keys", "--quick", "--json"],
        env=process_environment({"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    measured = {(row["case"], row["variant"]) for row in report["results"]}
    for variant in ("raw", "file", "pkcs11-softhsm", "vault-openbao", "awskms-moto"):
        assert ("unwrap", variant) in measured
    bars = {
        (row["case"], row["variant"]): row["bar"]
        for row in report["ratios"]
        if row["bar"] is not None
    }
    cases = ("sign-ed25519", "sign-es256", "sign-hybrid", "unwrap")
    assert bars == {(case, "file"): 0.5 for case in cases}
    assert all(row["median"] > 0 for row in report["results"])

"""`kill -9` of intake and database under load: nothing acknowledged is lost, nothing stored twice."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from support import faults

SOAK = os.environ.get("TG_TEST_SOAK") == "1"
INTAKE_KILLS, DATABASE_KILLS = (20, 5) if SOAK else (2, 1)

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(900 if SOAK else 180)]


@pytest.mark.invariant("TG-I43")
def test_killed_intake_and_database_lose_and_double_nothing(tmp_path: Path) -> None:
    with faults.site(tmp_path) as where:

        def chaos() -> None:
            kills = [where.kill_platform] * INTAKE_KILLS + [where.kill_database] * DATABASE_KILLS
            random.shuffle(kills)
            for kill in kills:
                time.sleep(random.uniform(0.3, 1.0))
                kill()
            time.sleep(0.5)

        tally = faults.send_while(where, chaos)
        faults.check(where, tally)
        assert tally.retries  # the kills were felt

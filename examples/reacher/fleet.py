"""What an operator does: sign in, make a fleet, let the arm enrol, register the pack, count samples."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
from console import Show
from services import StartError

from tensorguard.sdk import DeviceIdentity, FleetClient

FLEET = "reacher-arms"
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Login:
    """How the operator signs in. The password is in a file of mode 0600."""

    tenant: str
    username: str
    password_file: Path

    def write_password(self) -> None:
        """Make a random password, unless an earlier start made one."""
        if self.password_file.exists():
            return
        descriptor = os.open(self.password_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(18))


class Operator:
    """A signed-in operator."""

    def __init__(self, url: str, login: Login) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT)
        body = {
            "tenant": login.tenant,
            "username": login.username,
            "password": login.password_file.read_text().strip(),
        }
        token = self._ask("POST", "/api/v1/auth/login", json=body)["token"]
        self._http.headers["Authorization"] = f"Bearer {token}"
        self._fleet = FleetClient(url, lambda: token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        answer = self._http.request(method, path, **request)
        if answer.is_error:
            raise StartError(
                f"{method} {path} was answered with {answer.status_code}: {answer.text}"
            )
        return answer.json()

    def enrol(self, folder: Path, *, name: str, show: Show) -> DeviceIdentity:
        """Return the arm's identity: enrolled with a one-time token, or the one that is there."""
        if (folder / "device.json").exists():
            device = DeviceIdentity.load(folder)
            show.step("The arm is enrolled already", device.device_id)
            return device
        enrolment = self._fleet.create_enrolment(self._fleet.ensure_fleet(FLEET).id)
        if enrolment.token is None:
            raise StartError("the platform gave no enrolment token")
        device = DeviceIdentity.enrol(
            url=self._url, token=enrolment.token, name=name, folder=folder
        )
        show.step("Enrolled the arm", device.device_id)
        return device

    def register(self, pack: Path, *, show: Show) -> None:
        """Register the pack, so that grants name it. Registering it again changes nothing."""
        view = self._fleet.register_pack(pack.read_bytes())
        show.step("Registered the model pack", view.pack_id[:16])

    def count_samples(self, device_id: str, began: datetime, ended: datetime) -> int:
        """Return how many samples of the device the database holds within a time span."""
        step = int((ended - began).total_seconds()) + 2
        answer = self._ask(
            "GET",
            "/api/v1/telemetry/query",
            params={
                "label.device": device_id,
                "start": began.isoformat(),
                "end": ended.isoformat(),
                "step": f"{step}s",
                "agg": "count",
            },
        )
        return sum(int(point[1]) for series in answer["series"] for point in series["points"])

"""The main job, end to end: an arm enrols, streams telemetry, is trained, and is steered encrypted.

Everything goes through public commands (`tensorguard …`), the HTTP API and `tensorguard.sdk`. All
data lies under TG_HOME (default: `.home` beside this repository's Makefile); a second start reuses
the database, the arm's identity, the trained head, the pack and the keys that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import train
from arm import Arm, controller
from console import Report, Show
from episodes import Measurement, Telemetry, run_policies
from fleet import Login, Operator
from rich.console import Console
from services import Service, StartError, command, port_for

from tensorguard.errors import TensorGuardError
from tensorguard.keys import development
from tensorguard.keys.provider import KeyProvider
from tensorguard.keys.registry import open_provider
from tensorguard.moai.backends.base import SUPPORTED_BACKENDS, open_backend
from tensorguard.sdk import InferenceClient
from tensorguard.settings import Environment, Settings

MODEL = "reacher-policy"
VERSION = "1.0.0"
SIGNER = "pack-signer"
PLATFORM_PORT, SERVING_PORT = 8080, 8090
MINIMUM_EPISODES = 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--episodes", type=int, default=5, help="episodes of each policy")
    parser.add_argument(
        "--seconds", type=float, default=0, help="go on with encrypted episodes for this long"
    )
    parser.add_argument(
        "--backend",
        choices=sorted(SUPPORTED_BACKENDS),
        default=os.environ.get("TG_MOAI_BACKEND", "tenseal"),
        help="what the gateway computes with; default: TG_MOAI_BACKEND, or tenseal",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of training and first episode")
    chosen = parser.parse_args()
    if chosen.episodes < MINIMUM_EPISODES or chosen.seconds < 0:
        parser.error("--episodes takes at least 1, --seconds at least 0")
    if chosen.backend not in SUPPORTED_BACKENDS:
        parser.error(f"TG_MOAI_BACKEND is one of {', '.join(sorted(SUPPORTED_BACKENDS))}")
    return chosen


def home() -> Path:
    """Return the data folder, private to this user."""
    given = os.environ.get("TG_HOME")
    folder = Path(given).absolute() if given else Path(__file__).parents[2] / ".home"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("trust", "packs", "logs", "arm"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    return folder


def ports(folder: Path) -> tuple[int, int]:
    """Return the ports of platform and gateway: those of the last start wherever they are free.

    The arm's identity holds the platform's address, so that address should stay.
    """
    kept = folder / "ports.json"
    wanted = json.loads(kept.read_text()) if kept.exists() else [PLATFORM_PORT, SERVING_PORT]
    chosen = [port_for(port) for port in wanted]
    kept.write_text(json.dumps(chosen))
    return chosen[0], chosen[1]


def environment_for(folder: Path, platform_url: str, backend: str) -> dict[str, str]:
    """Return the variables of every process: development, loopback, all data in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TG_")}
    kept.pop("DATABASE_URL", None)
    return kept | {
        "TG_ENVIRONMENT": "development",
        "TG_HOME": str(folder),
        "TG_PUBLIC_URL": platform_url,
        "TG_MOAI_BACKEND": backend,
        "TG_TRUST_STORE": str(folder / "trust"),
        "TG_PACK_DIR": str(folder / "packs"),
        "TG_GRANT_JWKS": f"{platform_url}/.well-known/jwks.json",
    }


def trained(folder: Path, show: Show, *, seed: int) -> train.CubicPolicy:
    """Return the policy head, trained from demonstrations if it is not there yet."""
    if (folder / train.CALIBRATION_FILE).exists():
        show.step("Policy head is there", str(folder))
        return train.load(folder)
    with Arm() as arm, show.progress("Demonstrations", total=200) as bar:
        demonstrations = train.collect(arm, seed=seed, on_episode=lambda *_: bar.advance())
    with show.progress("Training", total=train.EPOCHS) as bar:
        policy = train.fit(demonstrations, seed=seed, on_epoch=lambda *_: bar.advance())
    train.save(policy, demonstrations, folder)
    show.step("Trained the policy head", f"{len(demonstrations.observations)} observations")
    return policy


def packed(folder: Path, environment: dict[str, str], show: Show) -> Path:
    """Return the signed model pack, built if it is not there yet."""
    public = folder / "trust" / f"{SIGNER}.pub.json"
    if not public.exists():
        command(*("keys", "create", SIGNER, "--purpose", "pack-signing"), environment=environment)
        command("keys", "export-public", SIGNER, "--out", str(public), environment=environment)
        show.step("Made the pack-signing key", "Ed25519 and ML-DSA-65")
    pack = folder / "packs" / f"{MODEL}-{VERSION}.moai"
    if not pack.exists():
        head = folder / "arm"
        command(
            *("pack", "build", str(head / train.WEIGHTS_FILE)),
            *("--layers", str(head / train.LAYERS_FILE)),
            *("--calibration", str(head / train.CALIBRATION_FILE)),
            *("--name", MODEL, "--version", VERSION, "--signer-key", SIGNER, "--out", str(pack)),
            environment=environment,
        )
        show.step("Built and signed the model pack", pack.name)
    command("pack", "verify", str(pack), environment=environment)
    return pack


def prepare(folder: Path, environment: dict[str, str], show: Show) -> Login:
    """Migrate the database and make the first admin; return how to sign in."""
    command("db", "upgrade", environment=environment)
    login = Login("reacher", "admin", folder / "admin.password")
    made = folder / "admin.made"
    if not made.exists():
        login.write_password()
        command(
            *("user", "create-admin", "--tenant", login.tenant, "--username", login.username),
            *("--password-file", str(login.password_file)),
            environment=environment,
        )
        made.touch()
        show.step("Made the first admin", f"tenant {login.tenant}")
    return login


def run(options: argparse.Namespace, show: Show) -> None:
    """Run the whole job."""
    open_backend(options.backend)  # if it is missing, say so before anything is started
    folder = home()
    platform_port, serving_port = ports(folder)
    environment = environment_for(folder, f"http://127.0.0.1:{platform_port}", options.backend)
    login = prepare(folder, environment, show)
    policy = trained(folder / "arm", show, seed=options.seed)
    pack = packed(folder, environment, show)
    with ExitStack() as stack:
        logs = folder / "logs"
        platform = Service(
            ("platform", "serve"),
            port=platform_port,
            environment=environment,
            log=logs / "platform.log",
        )
        stack.enter_context(platform)
        platform.wait_until_ready()
        operator = stack.enter_context(Operator(platform.url, login))
        device = operator.enrol(
            folder / "arm" / f"identity-{platform_port}", name="reacher-arm-1", show=show
        )
        operator.register(pack, show=show)
        serving = Service(
            ("serving", "serve"),
            port=serving_port,
            environment=environment,
            log=logs / "serving.log",
        )
        stack.enter_context(serving)
        serving.wait_until_ready()
        show.step("Platform and gateway are ready", f"{platform.url} {serving.url}")
        client = stack.enter_context(
            InferenceClient(
                serving.url,
                device.serving_grant,
                keys_path=folder / "arm" / "keystore.json",
                key_provider=custody(folder / "arm" / "custody"),
            )
        )
        model = client.open(MODEL)
        show.step("Gave the gateway the evaluation keys", "the secret key stays here")
        arm = stack.enter_context(Arm())
        telemetry = stack.enter_context(Telemetry(platform.url, device))
        measured = run_policies(
            arm,
            policies=(("expert", controller), ("plaintext", policy)),
            model=model,
            telemetry=telemetry,
            seed=options.seed,
            episodes=options.episodes,
            seconds=options.seconds,
            show=show,
        )
        stored = operator.count_samples(device.device_id, measured.began, measured.ended)
        report = Report.of(measured, stored=stored, backend=options.backend)
        show.result(report)
        check(measured, report)
        if not options.once:
            show.stay(platform.url, serving.url, login, folder)
            signal.pause()


def custody(folder: Path) -> KeyProvider:
    """Return the arm's own custody, which seals its keystore; its master key lies beside it."""
    settings = Settings(environment=Environment.development, home=folder)
    return open_provider(development.complete(settings))


def check(measured: Measurement, report: Report) -> None:
    """Insist on what the quickstart promises: nothing acknowledged is missing."""
    if not measured.sent == measured.acknowledged == report.samples_stored:
        raise StartError("samples sent, acknowledged and stored differ")


def main() -> int:
    """Run, and say plainly what went wrong if something did."""
    options = arguments()
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also when started in the background
    began = time.monotonic()
    try:
        run(options, Show(console, as_json=options.json, began=began))
    except (StartError, TensorGuardError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        if isinstance(error, TensorGuardError):
            console.print(f"hint: {error.remedy}", markup=False, highlight=False)
        if options.json:
            print(json.dumps({"error": str(error)}))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

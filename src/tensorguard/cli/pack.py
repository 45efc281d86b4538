"""`tensorguard pack`: build, inspect, verify and simulate model packs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from tensorguard.crypto.files import read_bounded, write_atomic
from tensorguard.crypto.hybrid import HybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.moai import pack as packs
from tensorguard.moai.manifest import Manifest, PrecisionReport, decode
from tensorguard.settings import Settings

app = typer.Typer(help="Build, inspect, verify and simulate model packs.", no_args_is_help=True)
progress = Console(stderr=True)

Model = Annotated[Path, typer.Argument(help="A .skops, .onnx, .pt2 or .safetensors file.")]
PackFile = Annotated[Path, typer.Argument(help="A .moai file.")]
Calibration = Annotated[Path, typer.Option(help="Rows of inputs as .npy or .npz: real ones.")]
Layers = Annotated[Path | None, typer.Option(help="Layer description of a .safetensors file.")]
Budget = Annotated[
    float, typer.Option(help="Largest rms error of the outputs, relative to their spread.")
]
Degree = Annotated[
    int | None,
    typer.Option(help="Degree of all activations: 2, 3, 5, 7, 15 or 27. Default: least."),
]
Refit = Annotated[bool, typer.Option("--refit-last", help="Refit the last layer afterwards.")]
Batch = Annotated[
    bool, typer.Option("--batch", help="For batches of samples; needs the native backend.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Samples that come together: the planner chooses the packing by cost. Instead of --batch."
    ),
]
Trust = Annotated[
    Path | None, typer.Option(help="Folder of trusted *.pub.json. Default: TG_TRUST_STORE.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="A class of an .onnx or .pt2 classifier, in order; repeat it."),
]
Report = Annotated[
    Path | None, typer.Option("--report", help="Write an HTML precision report to this file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _signer(key: str) -> HybridSigner:
    """Return the named pack-signing key of the configured key provider, its use recorded."""
    from tensorguard.keys import development, provider, registry, signers
    from tensorguard.platform.keys import administration

    settings = development.complete(Settings.from_environment())
    signer = signers.ProviderHybridSigner(
        registry.open_provider(settings),
        provider.key_id(key),
        purpose=provider.Purpose.pack_signing,
    )
    administration.record(settings, "key.signed", provider.key_id(key), what="a model pack")
    return signer


def _verified(path: Path, trust_store: Path | None) -> packs.VerifiedPack:
    settings = Settings.from_environment()
    folder = trust_store or settings.need("trust_store")
    data = read_bounded(path, limit=settings.max_pack_bytes)
    pack = packs.read(data, limit=settings.max_pack_bytes)
    return packs.verify(pack, TrustStore.from_folder(folder))


@app.command()
def build(
    model: Model,
    calibration: Calibration,
    name: Annotated[str, typer.Option(help="Model name: a-z, 0-9, dot, dash, underscore.")],
    version: Annotated[str, typer.Option(help="Model version.")],
    out: Annotated[Path, typer.Option(help="The .moai file to write.")],
    signer_key: Annotated[str, typer.Option(help="Id of a pack-signing key of the provider.")],
    layers: Layers = None,
    label: Labels = None,
    error_budget: Budget = 0.05,
    degree: Degree = None,
    refit_last: Refit = False,
    batch: Batch = False,
    batch_size: BatchSize = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Compile MODEL, plan its encrypted evaluation, sign it, and write a pack."""
    from tensorguard.moai import compile as compiler

    if batch and batch_size is not None:
        raise typer.BadParameter(
            "it chooses the packing itself: leave --batch out", param_hint="--batch-size"
        )
    signer = _signer(signer_key)
    with progress.status("Fitting, planning and simulating"):
        rows = compiler.read_calibration(calibration)
        network = compiler.read_model(model, layers=layers, labels=label or ())
        compiling = (
            partial(compiler.compile_network, layout="columns" if batch else "blocks")
            if batch_size is None
            else partial(compiler.compile_for_batches, batch=batch_size)
        )
        compiled = compiling(
            network, rows, error_budget=error_budget, degree=degree, refit_last=refit_last
        )
        data = compiler.build_pack(compiled, name=name, version=version, signer=signer)
    write_atomic(out, data, mode=0o644)
    if report is not None:
        page = compiler.report_compiled(compiled, rows, title=f"{name} {version}")
        write_atomic(report, page.encode(), mode=0o644)
    limit = Settings.from_environment().max_pack_bytes
    unverified = packs.read(data, limit=limit)
    _show(decode(unverified.manifest), unverified.pack_id, "signed", as_json=as_json)


@app.command()
def inspect(path: PackFile, as_json: AsJson = False) -> None:
    """Print what a pack says about itself. Its signature is NOT checked: see `verify`."""
    limit = Settings.from_environment().max_pack_bytes
    pack = packs.read(read_bounded(path, limit=limit), limit=limit)
    _show(decode(pack.manifest), pack.pack_id, "not checked", as_json=as_json)


@app.command()
def verify(path: PackFile, trust_store: Trust = None, as_json: AsJson = False) -> None:
    """Check signature, digests, graph and plan of a pack against a trust store."""
    pack = _verified(path, trust_store)
    _show(pack.manifest, pack.pack_id, f"verified, by {pack.signer_name}", as_json=as_json)


@app.command()
def simulate(
    path: Annotated[
        Path, typer.Argument(help="A .moai, .skops, .onnx, .pt2 or .safetensors file.")
    ],
    calibration: Calibration,
    layers: Layers = None,
    label: Labels = None,
    error_budget: Budget = 0.05,
    degree: Degree = None,
    refit_last: Refit = False,
    report: Report = None,
    trust_store: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Predict the errors of a model or of a finished pack on CALIBRATION. Nothing is encrypted."""
    from tensorguard.moai import compile as compiler

    rows = compiler.read_calibration(calibration)
    if path.suffix.lower() == ".moai":
        pack = _verified(path, trust_store)
        precision = compiler.predict_pack(pack, rows)
        page = compiler.report_pack(pack, precision, rows) if report else ""
    else:
        compiled = compiler.compile_network(
            compiler.read_model(path, layers=layers, labels=label or ()),
            rows,
            error_budget=error_budget,
            degree=degree,
            refit_last=refit_last,
        )
        precision = compiled.precision
        page = compiler.report_compiled(compiled, rows, title=path.name) if report else ""
    if report is not None:
        write_atomic(report, page.encode(), mode=0o644)
    if as_json:
        typer.echo(msgspec.json.encode(precision).decode())
    else:
        _show_precision(precision)


def _show(manifest: Manifest, pack_id: str, signature: str, *, as_json: bool) -> None:
    if as_json:
        document = {
            "pack_id": pack_id,
            "signature": signature,
            "manifest": msgspec.to_builtins(manifest),
        }
        typer.echo(msgspec.json.encode(document).decode())
        return
    parameters = manifest.parameters
    typer.echo(f"{manifest.name} {manifest.version}")
    typer.echo(f"  pack id     {pack_id}")
    typer.echo(f"  signature   {signature}")
    typer.echo(
        f"  CKKS        N={parameters.poly_modulus_degree}, {len(parameters.primes)} primes, "
        f"scale 2^{parameters.scale_bits}, {len(manifest.rotations)} rotation keys"
    )
    typer.echo(f"  input       {len(manifest.input.mean)} features")
    typer.echo(f"  output      {len(manifest.output.scale)}, {manifest.output.meaning}")
    _show_precision(manifest.precision)


def _show_precision(report: PrecisionReport) -> None:
    typer.echo(
        f"  error       rms {report.total_rms:.3g} of budget {report.error_budget:g} "
        f"(approximation {report.approximation_rms:.3g}, encryption {report.ckks_rms:.2g}) "
        f"on {report.samples} samples"
    )
    typer.echo("  layer            kind        degree  range                 max error  CKKS rms")
    for layer in report.layers:
        span = f"[{layer.low:.3g}, {layer.high:.3g}]"
        typer.echo(
            f"  {layer.name:<16} {layer.kind:<10} {layer.degree:>7}  {span:<20} "
            f"{layer.approximation_max:>10.3g} {layer.ckks_rms:>9.2g}"
        )

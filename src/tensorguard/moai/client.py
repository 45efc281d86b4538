"""The client alone holds secrets: only this module makes keys, encrypts and decrypts.

No server may import it (import contract 2). It believes nothing that a server says: parameters are
checked against the 128-bit table, the view against itself, and results are parsed strictly.
Decrypted values must not be sent back to the evaluator (IND-CPA-D, Li and Micciancio 2021).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tenseal import sealapi

from tensorguard.errors import InputError, MalformedInput, VerificationError
from tensorguard.moai import layout, strict
from tensorguard.moai.graph import check_scalings, finish
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import MAX_KEY_BYTES  # who asks for more wants to exhaust us
from tensorguard.moai.seal import Seal, dump
from tensorguard.wire.frames import KEY_ID_SIZE, Kind, build_frame, parse_frame
from tensorguard.wire.models import ModelView

Floats = npt.NDArray[np.float64]
_SLACK = 4096  # headers of a frame and of SEAL, and zstd's own overhead on random data


class ViewUntrustworthy(VerificationError):
    code = "model_view_untrustworthy"
    remedy = "Do not use this server's model; tell its operator what the detail says."


class InputOutOfRange(InputError):
    """The polynomials were fitted on a range; outside of it the answer would be silently wrong."""

    code = "input_out_of_range"
    status = 422
    remedy = (
        "Send values within the pack's calibrated range, pass out_of_range='clip', "
        "or calibrate the pack on data that covers them."
    )


class NotForBatches(InputError):
    code = "model_not_for_batches"
    status = 422
    remedy = "Send the samples one by one, or ask for a pack that is built with --batch."


class ClientKeys:
    """A client's secret key for one set of parameters, and what can be done with it."""

    def __init__(
        self, view: ModelView, secret: Any | None = None, *, key_id: bytes | None = None
    ) -> None:
        self.view = view
        self.parameters = check_view(view)
        self._seal = Seal(self.parameters)
        context = self._seal.context
        if secret is None:
            self._generator = sealapi.KeyGenerator(context)
        else:
            self._generator = sealapi.KeyGenerator(context, secret)
        self._secret = self._generator.secret_key()
        self.key_id = key_id or secrets.token_bytes(KEY_ID_SIZE)
        self._encryptor = sealapi.Encryptor(context, self._secret)
        self._decryptor = sealapi.Decryptor(context, self._secret)

    @classmethod
    def generate(cls, view: ModelView) -> ClientKeys:
        """Make a fresh secret key. Raises `InsecureParameters` or `ViewUntrustworthy`."""
        return cls(view)

    def evaluation_keys(self) -> bytes:
        """Return the frame with the rotation and relinearisation keys that the model needs.

        It is public. Every call makes new keys of the same secret; upload one of them.
        """
        items = []
        if self.view.rotations:
            elements = [self.parameters.galois_element(step) for step in self.view.rotations]
            items.append(dump(self._generator.create_galois_keys(elements)))
        if self.view.relinearisation:
            items.append(dump(self._generator.create_relin_keys()))
        if not items:
            raise ViewUntrustworthy("the model needs no evaluation keys, so it computes nothing")
        return build_frame(Kind.evaluation_keys, self.parameters.id, items, key_id=self.key_id)

    def encrypt(
        self, x: npt.ArrayLike, *, out_of_range: Literal["refuse", "clip"] = "refuse"
    ) -> bytes:
        """Return the frame of one input vector (features,), in its own units.

        Values outside the calibrated range are refused, or with "clip" moved to its edge.
        The ciphertext is symmetric, with its second half as a seed: half the size of a usual one.
        """
        if self.view.packing.layout == "columns":
            return self.encrypt_batch(np.asarray(x)[None], out_of_range=out_of_range)
        values = np.asarray(x, dtype=np.float64)
        if values.shape != (self.view.features,):
            raise MalformedInput(f"an input is {self.view.features} finite numbers")
        return self._encrypt([self._lay_out(self._standardise(values[None], out_of_range)[0])])

    def encrypt_batch(
        self, x: npt.ArrayLike, *, out_of_range: Literal["refuse", "clip"] = "refuse"
    ) -> bytes:
        """Return the frame of up to `slots` samples (n, features), for a model in columns."""
        values = np.asarray(x, dtype=np.float64)
        slots, features = self.parameters.slots, self.view.features
        if self.view.packing.layout != "columns":
            raise NotForBatches("the model's pack was built for single samples")
        if values.ndim != 2 or values.shape[1] != features or not 1 <= len(values) <= slots:  # noqa: PLR2004 -- rows
            raise MalformedInput(f"a batch is 1 to {slots} rows of {features} finite numbers")
        columns = np.zeros((features, slots))
        columns[:, : len(values)] = self._standardise(values, out_of_range).T
        return self._encrypt(columns)

    def _standardise(self, values: Floats, out_of_range: Literal["refuse", "clip"]) -> Floats:
        given = self.view.input
        if not np.isfinite(values).all():
            raise MalformedInput(f"an input is {self.view.features} finite numbers")
        low, high = np.array(given.low), np.array(given.high)
        if out_of_range == "clip":
            values = np.clip(values, low, high)
        outside = np.argwhere((values < low) | (values > high))
        if outside.size:
            row, at = (int(place) for place in outside[0])
            raise InputOutOfRange(
                f"input {at} is {values[row, at]:g}, calibrated are {low[at]:g} to {high[at]:g}"
            )
        return np.asarray((values - np.array(given.mean)) / np.array(given.std))

    def _encrypt(self, rows: Iterable[Floats]) -> bytes:
        level, scale = self.parameters.levels, self.parameters.scale
        items = [
            dump(
                self._encryptor.encrypt_symmetric(
                    self._seal.encode(slots, level=level, scale=scale)
                )
            )
            for slots in rows
        ]
        return build_frame(Kind.ciphertext, self.parameters.id, items, key_id=self.key_id)

    def decrypt(self, frame: bytes, *, flood: Callable[[Floats], Floats] | None = None) -> Floats:
        """Return the outputs (outputs,) of a result frame, rescaled and after the activation.

        A classification gives one probability for each label of `view.output.labels`. `flood` changes
        the normalised values (outputs,) before anything else sees them: results that are to be shared.
        """
        outputs = len(self.view.output.scale)
        if self.view.packing.layout == "columns":
            columns = self._decrypt(frame, columns=outputs)
            values = np.array([slots[0] for slots in columns])
        else:
            (slots,) = self._decrypt(frame, columns=1)
            values = slots[:outputs]
        if flood is not None:
            values = flood(values)
        return np.asarray(finish(self.view.output, values[None])[0])

    def decrypt_batch(self, frame: bytes, *, samples: int) -> Floats:
        """Return the outputs (samples, outputs) of a batch of so many samples."""
        if not 1 <= samples <= self.parameters.slots:
            raise MalformedInput(f"a batch has 1 to {self.parameters.slots} samples")
        columns = self._decrypt(frame, columns=len(self.view.output.scale))
        return finish(self.view.output, np.stack([slots[:samples] for slots in columns], axis=1))

    def decrypt_slots(self, frame: bytes) -> list[Floats]:
        """Return all slots of each ciphertext of a result, for measuring noise. Never share them."""
        in_columns = self.view.packing.layout == "columns"
        return self._decrypt(frame, columns=len(self.view.output.scale) if in_columns else 1)

    def _decrypt(self, frame: bytes, *, columns: int) -> list[Floats]:
        limit = columns * (2 * self.parameters.degree * 8 + _SLACK)
        parsed = parse_frame(
            frame,
            kind=Kind.ciphertext,
            parameters_id=self.parameters.id,
            limit=limit,
            columns=columns,
        ).of_key(self.key_id)
        found = []
        for item in parsed.items:
            blob = strict.parse_ciphertext(
                item, self.parameters, level=1, scale=self.parameters.scale
            )
            plaintext = sealapi.Plaintext()
            self._decryptor.decrypt(self._seal.load(sealapi.Ciphertext, blob), plaintext)
            found.append(np.asarray(self._seal.decode(plaintext)))
        return found

    def to_frame(self) -> bytes:
        """Return the secret key as a frame, for the client's own keystore and nobody else."""
        items = (dump(self._secret),)
        kind = Kind.client_secret_keys
        return build_frame(kind, self.parameters.id, items, key_id=self.key_id)

    @classmethod
    def from_frame(cls, frame: bytes, view: ModelView) -> ClientKeys:
        """Read what `to_frame` made, for a view with the same parameters."""
        parameters = check_view(view)
        limit = (parameters.levels + 1) * parameters.degree * 8 + _SLACK
        parsed = parse_frame(
            frame, kind=Kind.client_secret_keys, parameters_id=parameters.id, limit=limit
        )
        secret = Seal(parameters).load(sealapi.SecretKey, parsed.items[0])
        return cls(view, secret, key_id=parsed.key_id)

    def _lay_out(self, standardised: Floats) -> Floats:
        packing = self.view.packing
        padded = np.zeros(packing.period)
        padded[: len(standardised)] = standardised
        return np.asarray(
            padded[
                layout.input_index(
                    slots=packing.slots,
                    period=packing.period,
                    block_length=packing.block_length,
                    blocks=packing.blocks,
                    shift=packing.shift,
                )
            ]
        )


def check_view(view: ModelView) -> CkksParameters:
    """Return the view's parameters once the view holds together.

    Raises `InsecureParameters`, `ViewUntrustworthy` or `MalformedInput`.
    """
    # (1) the parameters are in the 128-bit table, and the id is theirs
    parameters = CkksParameters.from_wire(view.parameters)
    if parameters.id.hex() != view.parameters_id:
        raise ViewUntrustworthy("the parameter id is not that of the parameters")
    # (2) rotations are distinct steps within the slots
    if list(view.rotations) != sorted(set(view.rotations)) or any(
        step >= parameters.slots for step in view.rotations
    ):
        raise ViewUntrustworthy("the rotation steps are not ascending steps within the slots")
    lists = len(view.rotations) + view.relinearisation
    words = parameters.levels * (parameters.levels + 1) * parameters.degree
    if lists * words * 8 > MAX_KEY_BYTES:
        raise ViewUntrustworthy(f"the model asks for over {MAX_KEY_BYTES} bytes of keys")
    # (3) the packing fits parameters and features
    packing = view.packing
    sizes = (packing.slots, packing.period, packing.block_length, packing.blocks, packing.shift)
    if packing.slots != parameters.slots or any(size & (size - 1) for size in sizes):
        raise ViewUntrustworthy("the packing is not in powers of two of these slots")
    if packing.layout == "columns":
        if sizes[1:] != (1, 1, 1, 1) or view.rotations:
            raise ViewUntrustworthy("a packing in columns has no blocks and no rotations")
    elif not view.features <= packing.period <= packing.block_length:
        raise ViewUntrustworthy("the packing is not for this many features")
    if packing.blocks * packing.block_length > packing.slots:
        raise ViewUntrustworthy("the packing needs more slots than there are")
    # (4) the scalings are for these features, and the outputs fit a ciphertext
    check_scalings(view.input, view.output, features=view.features)
    if len(view.output.scale) > parameters.slots:
        raise ViewUntrustworthy("there are more outputs than slots")
    return parameters


class ColumnKeys:
    """A secret key for columns of slots without a model's view: for `moai.research` alone.

    Its parameters are the caller's own, so there is no server's word to check.
    """

    def __init__(self, parameters: CkksParameters) -> None:
        self.parameters = parameters
        self._seal = Seal(parameters)
        self._generator = sealapi.KeyGenerator(self._seal.context)
        secret = self._generator.secret_key()
        self._encryptor = sealapi.Encryptor(self._seal.context, secret)
        self._decryptor = sealapi.Decryptor(self._seal.context, secret)

    def rotation_key(self, step: int) -> bytes:
        """Return the public key of one rotation of the slots to the left."""
        element = self.parameters.galois_element(step)
        return dump(self._generator.create_galois_keys([element]))

    def relinearisation_key(self) -> bytes:
        """Return the public relinearisation key."""
        return dump(self._generator.create_relin_keys())

    def encrypt(self, slots: Floats, *, level: int) -> bytes:
        """Return the seeded ciphertext of `slots` (slots,) with `level` primes."""
        encoded = self._seal.encode(slots, level=level, scale=self.parameters.scale)
        return dump(self._encryptor.encrypt_symmetric(encoded))

    def decrypt(self, blob: bytes) -> Floats:
        """Return the slots of a result with one prime left. Raises a 4xx `TensorGuardError`."""
        scale = self.parameters.scale
        checked = strict.parse_ciphertext(blob, self.parameters, level=1, scale=scale)
        plaintext = sealapi.Plaintext()
        self._decryptor.decrypt(self._seal.load(sealapi.Ciphertext, checked), plaintext)
        return np.asarray(self._seal.decode(plaintext))

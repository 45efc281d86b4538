"""SEAL itself (`tenseal.sealapi`) as a peer: objects in, residues out. Any ring, secure or not."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np
import zstandard
from tenseal import sealapi

WORD = 8


class SealPeer:
    """A client and an evaluator of SEAL over data primes and a special prime of the given bits."""

    def __init__(self, degree: int, bits: Sequence[int], rotations: Sequence[int] = ()) -> None:
        moduli = sealapi.CoeffModulus.Create(degree, list(bits))
        self.degree = degree
        self.primes = [modulus.value() for modulus in moduli]
        self.levels = len(self.primes) - 1
        chain = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        chain.set_poly_modulus_degree(degree)
        chain.set_coeff_modulus(moduli)
        self.context = sealapi.SEALContext(chain, True, sealapi.SEC_LEVEL_TYPE.NONE)
        self.generator = sealapi.KeyGenerator(self.context)
        secret = self.generator.secret_key()
        self.encryptor = sealapi.Encryptor(self.context, secret)
        self.decryptor = sealapi.Decryptor(self.context, secret)
        self.encoder = sealapi.CKKSEncoder(self.context)
        self.evaluator = sealapi.Evaluator(self.context)
        self.rotations = tuple(rotations)
        self.galois = sealapi.GaloisKeys()
        self.relinearisation = sealapi.RelinKeys()
        if self.rotations:
            self.generator.create_galois_keys([self.element(r) for r in rotations], self.galois)
        self.generator.create_relin_keys(self.relinearisation)
        fresh = self.encrypt(np.zeros(degree // 2))
        self._parms: dict[int, list[int]] = {}
        while True:
            self._parms[fresh.coeff_modulus_size()] = fresh.parms_id()
            if fresh.coeff_modulus_size() == 1:
                break
            self.evaluator.mod_switch_to_next_inplace(fresh)

    def element(self, rotation: int) -> int:
        return pow(3, rotation, 2 * self.degree)

    def parms(self, level: int) -> list[int]:
        return self._parms[level]

    def encode(self, slots, *, level: int | None = None, scale: float = 2.0**30):
        plaintext = sealapi.Plaintext()
        values = np.asarray(slots, dtype=np.float64).tolist()
        if level is None:
            self.encoder.encode(values, scale, plaintext)
        else:
            self.encoder.encode(values, self.parms(level), scale, plaintext)
        return plaintext

    def encode_for_keys(self, slots, *, scale: float):
        """Encode over all primes, the special one too."""
        plaintext = sealapi.Plaintext()
        key_parms = self.context.key_parms_id()
        self.encoder.encode(
            np.asarray(slots, dtype=np.float64).tolist(), key_parms, scale, plaintext
        )
        return plaintext

    def encrypt(self, slots, *, scale: float = 2.0**30):
        ciphertext = sealapi.Ciphertext()
        seeded = self.encryptor.encrypt_symmetric(self.encode(slots, scale=scale))
        return self.load(ciphertext, dump(seeded))

    def decrypt(self, residues: np.ndarray, *, scale: float) -> np.ndarray:
        """Decrypt an array (2, level, degree) of residues."""
        level = residues.shape[1]
        head = struct.pack("<4Q", *self.parms(level))
        head += struct.pack("<BQQQdQ", 1, 2, self.degree, level, scale, 1)
        data = struct.pack("<Q", residues.size) + residues.astype("<u8").tobytes()
        payload = head + header(len(data)) + data
        ciphertext = self.load(sealapi.Ciphertext(), header(len(payload)) + payload)
        plaintext = sealapi.Plaintext()
        self.decryptor.decrypt(ciphertext, plaintext)
        return np.array(self.encoder.decode_double(plaintext))

    def load(self, thing, blob: bytes):
        descriptor = os.memfd_create("seal")
        try:
            os.write(descriptor, blob)
            thing.load(self.context, f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return thing

    def residues(self, ciphertext) -> np.ndarray:
        """Return the residues of a full ciphertext: (size, level, degree)."""
        return read_ciphertext(payload(dump(ciphertext)), 0)[0]

    def plain_residues(self, plaintext) -> np.ndarray:
        """Return the residues of a plaintext in NTT form: (primes, degree)."""
        data = payload(dump(plaintext))
        (count,) = struct.unpack_from("<Q", data, 32)
        words = np.frombuffer(data, dtype="<u8", count=count, offset=len(data) - count * WORD)
        return words.reshape(-1, self.degree)

    def switching_keys(self, keys) -> dict[int, np.ndarray]:
        """Return full keys by their place (Galois element (place * 2) + 1): (levels, 2, levels + 1, degree)."""
        found = {}
        for place, row in read_keys(payload(dump(keys))).items():
            found[place] = np.stack([body for body, _ in row])
        return found

    def seeded_keys(self, serializable) -> dict[int, tuple[list[np.ndarray], bytes]]:
        """Return by place the bodies (levels + 1, degree) of each digit and the seeds, joined."""
        found = {}
        for place, row in read_keys(payload(dump(serializable))).items():
            found[place] = ([body[0] for body, _ in row], b"".join(seed for _, seed in row))
        return found


def header(size: int) -> bytes:
    return struct.pack("<2sBBBBHQ", b"\x5e\xa1", 16, 4, 3, 0, 0, 16 + size)


def dump(thing) -> bytes:
    descriptor = os.memfd_create("seal")
    try:
        thing.save(f"/proc/self/fd/{descriptor}")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def payload(blob: bytes) -> bytes:
    assert blob[:2] == b"\x5e\xa1"
    if blob[5] == 0:
        return blob[16:]
    return zstandard.ZstdDecompressor().decompressobj().decompress(blob[16:])


def read_ciphertext(data: bytes, at: int) -> tuple[np.ndarray, bytes, int]:
    """Return the residues, the seed (or nothing) and where the ciphertext ends."""
    size, degree, level = struct.unpack_from("<QQQ", data, at + 33)
    at += 73 + 16
    (count,) = struct.unpack_from("<Q", data, at)
    at += WORD
    words = np.frombuffer(data, dtype="<u8", count=count, offset=at)
    at += count * WORD
    if count == size * degree * level:
        return words.reshape(size, level, degree), b"", at
    assert data[at + 16] == 1  # BLAKE2Xb
    return words.reshape(1, level, degree), data[at + 17 : at + 81], at + 81


def read_keys(data: bytes) -> dict[int, list[tuple[np.ndarray, bytes]]]:
    (rows,) = struct.unpack_from("<Q", data, 32)
    at = 40
    found: dict[int, list[tuple[np.ndarray, bytes]]] = {}
    for place in range(rows):
        (count,) = struct.unpack_from("<Q", data, at)
        at += WORD
        for _ in range(count):
            body, seed, at = read_ciphertext(data, at + 16)
            found.setdefault(place, []).append((body, seed))
    assert at == len(data)
    return found

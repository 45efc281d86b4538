// The public half of a seeded ciphertext or key: uniform residues from a seed, exactly as SEAL 4.3
// draws them (BLAKE2Xb in counter mode, rejection sampling). The seed is sent in the clear.
#pragma once

#include <array>
#include <span>

#include "ring.hpp"

namespace tg {

constexpr std::size_t kSeedBytes = 64;

// Uniform residues in NTT form at `places` (numbers of primes): [places][N].
void expand_uniform(u64* out, const Ring& ring, std::span<const std::size_t> places,
                    std::span<const std::uint8_t> seed);

}  // namespace tg

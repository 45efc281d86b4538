// What an evaluation handles. Every residue in here is below its prime: checked at the door, kept since.
#pragma once

#include <map>
#include <memory>

#include "ring.hpp"

namespace tg {

using RingPtr = std::shared_ptr<const Ring>;

// `size` polynomials in NTT form over the first `level` primes: [size][level][N].
struct Ciphertext {
  RingPtr ring;
  std::size_t size = 0, level = 0;
  Buffer data;

  std::size_t stride() const { return level * ring->degree(); }
  u64* polynomial(std::size_t i) { return data.data() + i * stride(); }
  const u64* polynomial(std::size_t i) const { return data.data() + i * stride(); }
};

// One polynomial in NTT form: [level][N], or with `extended` [level + 1][N], the special prime last.
struct Plaintext {
  RingPtr ring;
  std::size_t level = 0;
  bool extended = false;
  Buffer data;
};

// A public key-switching key in SEAL's layout: [data primes][2][data primes + 1][N].
struct SwitchingKey {
  RingPtr ring;
  Buffer data;

  const u64* row(std::size_t digit, std::size_t half, std::size_t place) const {
    const std::size_t places = ring->levels() + 1;
    return data.data() + ((digit * 2 + half) * places + place) * ring->degree();
  }
};

struct Keys {
  std::map<u64, std::shared_ptr<const SwitchingKey>> rotations;  // by Galois element
  std::shared_ptr<const SwitchingKey> relinearisation;
};

}  // namespace tg

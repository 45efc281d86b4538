// Operations on ciphertexts. Those of the first group give SEAL's residues, bit for bit; those of the
// second do less work for the same value, with other roundings.
#pragma once

#include "objects.hpp"

namespace tg {

Ciphertext add(const Ciphertext&, const Ciphertext&);  // of sizes 2 or 3
Ciphertext subtract(const Ciphertext&, const Ciphertext&);
Ciphertext add_plain(const Ciphertext&, const Plaintext&);
Ciphertext multiply_plain(const Ciphertext&, const Plaintext&);
Ciphertext multiply(const Ciphertext&, const Ciphertext&);  // sizes 2; gives 3
Ciphertext relinearise(const Ciphertext&, const Keys&);
Ciphertext rescale(const Ciphertext&);
Ciphertext relinearise_rescale(const Ciphertext&, const Keys&);  // SEAL's two in one
Ciphertext drop(const Ciphertext&, std::size_t level);           // mod-switch to a lower level
Ciphertext rotate(const Ciphertext&, u64 element, const Keys&);

// The rotations of one ciphertext by many elements, which share one decomposition.
std::vector<Ciphertext> rotations(const Ciphertext&, const std::vector<u64>& elements, const Keys&);

// x, then for each element in turn x + rotation(x): the first polynomial stays multiplied by P until
// the end.
Ciphertext fold(const Ciphertext&, const std::vector<u64>& elements, const Keys&);

// Diagonals by giant step and baby step; the transform rescales its result. A null diagonal is zero.
// Elements for step 0 are 1. With one diagonal it is a plain product, and diagonals are not extended.
struct Transform {
  RingPtr ring;
  std::size_t level = 0;
  std::vector<u64> baby, giant;
  std::vector<std::vector<std::shared_ptr<const Plaintext>>> diagonals;  // [giant][baby]

  void check() const;  // throws std::invalid_argument
  Ciphertext apply(const Ciphertext&, const Keys&) const;
};

// out_r = sum over c of weights[r][c] * in_c, with integer weights, then one rescale each: a linear
// layer on columns (slots are samples), which needs no rotation.
std::vector<Ciphertext> combine(const std::vector<const Ciphertext*>& columns,
                                const std::vector<std::int64_t>& weights, std::size_t rows);

}  // namespace tg

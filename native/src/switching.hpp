// Key switching in two halves, so that one decomposition can serve many rotations (hoisting).
#pragma once

#include "objects.hpp"

namespace tg {

// A polynomial's residues, each spread over all primes of its level and the special one.
class Digits {
 public:
  // `polynomial`: NTT form, [level][N]; it must outlive the digits, which refer to it.
  Digits(const Ring& ring, const u64* polynomial, std::size_t level);

  std::size_t level() const { return level_; }
  // The digits at place k of QP (k = level: the special prime).
  const u64* const* at(std::size_t k) const { return rows_.data() + k * level_; }

 private:
  std::size_t level_;
  Buffer spread_;
  std::vector<const u64*> rows_;  // [level + 1][digit]
};

// What is added to the key-switched polynomials, over QP; any of it may be absent.
struct SwitchTarget {
  u64* out;                                  // [2][level + 1][N]
  const Permutation* permutation = nullptr;  // of the digits and of `shifted0`
  const u64 *base0 = nullptr, *base1 = nullptr, *shifted0 = nullptr;  // [level (+ 1)][N]
  bool special_too = false;  // whether they have residues for the special prime; else these are 0
};

void switch_key(const Ring&, const Digits&, const SwitchingKey&, const SwitchTarget&);

// Both throw std::invalid_argument where the key is missing or of another ring.
const SwitchingKey& rotation_key(const Keys&, u64 element, const RingPtr&);
const SwitchingKey& relinearisation_key(const Keys&, const RingPtr&);

}  // namespace tg

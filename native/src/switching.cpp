#include "switching.hpp"

#include <stdexcept>

namespace tg {

Digits::Digits(const Ring& ring, const u64* polynomial, std::size_t level)
    : level_(level), spread_(ring.buffer(level * (level + 1))), rows_(level * (level + 1)) {
  const std::size_t n = ring.degree();
  Buffer coefficients = ring.buffer(level);
  ring.parallel(level, [&](std::size_t j) {
    ring.kernels(j).inverse_ntt(coefficients.data() + j * n, polynomial + j * n, ring.tables(j));
  });
  ring.parallel(level * (level + 1), [&](std::size_t i) {
    const std::size_t k = i / level, j = i % level;
    if (k == j) {
      rows_[i] = polynomial + j * n;
      return;
    }
    u64* row = spread_.data() + i * n;
    ring.transform(row, coefficients.data() + j * n, j, k == level ? ring.special() : k);
    rows_[i] = row;
  });
}

void switch_key(const Ring& ring, const Digits& digits, const SwitchingKey& key,
                const SwitchTarget& target) {
  const std::size_t n = ring.degree(), level = digits.level();
  ring.parallel(level + 1, [&](std::size_t k) {
    const std::size_t place = k == level ? ring.special() : k;
    std::vector<const u64*> rows(2 * level);
    for (std::size_t j = 0; j < level; ++j) {
      rows[j] = key.row(j, 0, place);
      rows[level + j] = key.row(j, 1, place);
    }
    const auto part = [&](const u64* base) {
      return base != nullptr && (k < level || target.special_too) ? base + k * n : nullptr;
    };
    ring.kernels(place).inner(
        {target.out + k * n, target.out + (level + 1 + k) * n, digits.at(k), rows.data(),
         rows.data() + level, level, target.permutation, part(target.base0), part(target.base1),
         part(target.shifted0)},
        n, ring.modulus(place));
  });
}

const SwitchingKey& rotation_key(const Keys& keys, u64 element, const RingPtr& ring) {
  const auto found = keys.rotations.find(element);
  if (found == keys.rotations.end())
    throw std::invalid_argument("there is no key for this Galois element");
  if (found->second->ring != ring) throw std::invalid_argument("the key is of another ring");
  return *found->second;
}

const SwitchingKey& relinearisation_key(const Keys& keys, const RingPtr& ring) {
  if (!keys.relinearisation) throw std::invalid_argument("there is no relinearisation key");
  if (keys.relinearisation->ring != ring) throw std::invalid_argument("the key is of another ring");
  return *keys.relinearisation;
}

}  // namespace tg

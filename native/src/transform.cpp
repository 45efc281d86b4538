// Hoisted baby-step giant-step linear transforms (Halevi and Shoup 2018; Bossuat et al. 2021).
#include <cstring>
#include <stdexcept>

#include "evaluator.hpp"
#include "switching.hpp"

namespace tg {

namespace {

bool is_single(const Transform& t) { return t.baby.size() == 1 && t.giant.size() == 1; }

// The input, turned by each baby step and times P, over QP: [baby][2][level + 1][N].
Buffer turn_by_babies(const Transform& t, const Ciphertext& x, const Keys& keys) {
  const Ring& ring = *t.ring;
  const std::size_t n = ring.degree(), level = t.level, half = (level + 1) * n;
  Buffer turned = ring.buffer(t.baby.size() * 2 * (level + 1));
  Buffer raised = ring.buffer(level);
  ring.multiply_by_special(raised.data(), x.polynomial(0), level);
  const Digits digits(ring, x.polynomial(1), level);
  for (std::size_t b = 0; b < t.baby.size(); ++b) {
    u64* out = turned.data() + b * 2 * half;
    if (t.baby[b] == 1) {
      std::memcpy(out, raised.data(), level * n * sizeof(u64));
      ring.multiply_by_special(out + half, x.polynomial(1), level);
      std::memset(out + level * n, 0, n * sizeof(u64));
      std::memset(out + half + level * n, 0, n * sizeof(u64));
    } else {
      switch_key(ring, digits, rotation_key(keys, t.baby[b], t.ring),
                 {.out = out, .permutation = &ring.permutation(t.baby[b]),
                  .shifted0 = raised.data()});
    }
  }
  return turned;
}

// The sum of one giant step's products, over QP; false if all of its diagonals are zero.
bool sum_products(const Transform& t, std::size_t giant, const Buffer& turned, u64* out) {
  const Ring& ring = *t.ring;
  const std::size_t n = ring.degree(), level = t.level, half = (level + 1) * n;
  std::vector<const u64*> diagonals, first, second;
  for (std::size_t b = 0; b < t.baby.size(); ++b) {
    const auto& diagonal = t.diagonals[giant][b];
    if (!diagonal) continue;
    diagonals.push_back(diagonal->data.data());
    first.push_back(turned.data() + b * 2 * half);
    second.push_back(turned.data() + b * 2 * half + half);
  }
  if (diagonals.empty()) return false;
  ring.parallel(level + 1, [&](std::size_t k) {
    auto x = diagonals, y0 = first, y1 = second;
    for (auto* list : {&x, &y0, &y1})
      for (auto& pointer : *list) pointer += k * n;
    const std::size_t place = k == level ? ring.special() : k;
    ring.kernels(place).inner({out + k * n, out + half + k * n, x.data(), y0.data(), y1.data(),
                               x.size(), nullptr, nullptr, nullptr, nullptr},
                              n, ring.modulus(place));
  });
  return true;
}

}  // namespace

void Transform::check() const {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  require(level >= 2 && level <= ring->levels(), "a transform needs a level to rescale from");
  require(!baby.empty() && !giant.empty() && diagonals.size() == giant.size(),
          "there is one row of diagonals for each giant step");
  for (const auto& row : diagonals) {
    require(row.size() == baby.size(), "there is one diagonal for each baby step");
    for (const auto& diagonal : row) {
      if (!diagonal) continue;
      require(diagonal->ring == ring && diagonal->level == level &&
                  diagonal->extended != is_single(*this),
              "a diagonal is of another ring, level or kind");
    }
  }
  for (const auto* elements : {&baby, &giant})
    for (const u64 element : *elements) ring->permutation(element);  // also prepares it
  require(!is_single(*this) || (baby[0] == 1 && giant[0] == 1 && diagonals[0][0]),
          "a single diagonal is not turned, and not zero");
}

Ciphertext Transform::apply(const Ciphertext& x, const Keys& keys) const {
  if (x.ring != ring || x.level != level || x.size != 2)
    throw std::invalid_argument("the ciphertext does not fit the transform");
  if (is_single(*this)) return rescale(multiply_plain(x, *diagonals[0][0]));
  const std::size_t half = (level + 1) * ring->degree();
  const Buffer turned = turn_by_babies(*this, x, keys);
  Buffer part = ring->buffer(2 * (level + 1)), total = ring->buffer(2 * (level + 1));
  bool any = false;
  for (std::size_t g = 0; g < giant.size(); ++g) {
    if (giant[g] == 1 && !any) {
      any = sum_products(*this, g, turned, total.data());
      continue;
    }
    if (!sum_products(*this, g, turned, part.data())) continue;
    Buffer second = ring->buffer(level);
    ring->divide_by_special(second.data(), part.data() + half, level, nullptr);
    const Digits digits(*ring, second.data(), level);
    switch_key(*ring, digits, rotation_key(keys, giant[g], ring),
               {.out = total.data(), .permutation = &ring->permutation(giant[g]),
                .base0 = any ? total.data() : nullptr,
                .base1 = any ? total.data() + half : nullptr,
                .shifted0 = part.data(), .special_too = true});
    any = true;
  }
  if (!any) throw std::invalid_argument("all diagonals are zero");
  Ciphertext out{ring, 2, level - 1, ring->buffer(2 * (level - 1))};
  for (std::size_t i = 0; i < 2; ++i)
    ring->divide_by_both(out.polynomial(i), total.data() + i * half, level);
  return out;
}

}  // namespace tg

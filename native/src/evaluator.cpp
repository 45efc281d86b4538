#include "evaluator.hpp"

#include <cstring>
#include <stdexcept>

#include "switching.hpp"

namespace tg {

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

Ciphertext make(const RingPtr& ring, std::size_t size, std::size_t level) {
  return {ring, size, level, ring->buffer(size * level)};
}

void copy(u64* out, const u64* in, std::size_t words) {
  std::memcpy(out, in, words * sizeof(u64));
}

void require_same(const Ciphertext& a, const Ciphertext& b) {
  require(a.ring == b.ring, "the ciphertexts are of different rings");
  require(a.level == b.level, "the ciphertexts are at different levels");
}

void require_fits(const Ciphertext& a, const Plaintext& b) {
  require(a.ring == b.ring, "ciphertext and plaintext are of different rings");
  require(b.level == a.level && !b.extended, "ciphertext and plaintext are at different levels");
}

// Calls work(place, offset) for every residue polynomial of `count` polynomials.
template <typename Work>
void each(const Ring& ring, std::size_t count, std::size_t level, Work work) {
  ring.parallel(count * level,
                [&](std::size_t i) { work(i % level, i * ring.degree()); });
}

template <bool kSubtract>
Ciphertext combine_two(const Ciphertext& a, const Ciphertext& b) {
  require_same(a, b);
  const Ring& ring = *a.ring;
  const std::size_t n = ring.degree(), common = a.size < b.size ? a.size : b.size;
  Ciphertext out = make(a.ring, a.size < b.size ? b.size : a.size, a.level);
  each(ring, out.size, a.level, [&](std::size_t k, std::size_t at) {
    const Kernels& kernel = ring.kernels(k);
    u64* to = out.data.data() + at;
    if (at < common * a.stride()) {
      const auto operation = kSubtract ? kernel.subtract : kernel.add;
      operation(to, a.data.data() + at, b.data.data() + at, n, ring.modulus(k));
    } else if (a.size > common) {
      copy(to, a.data.data() + at, n);
    } else if constexpr (kSubtract) {
      std::memset(to, 0, n * sizeof(u64));
      kernel.subtract(to, to, b.data.data() + at, n, ring.modulus(k));
    } else {
      copy(to, b.data.data() + at, n);
    }
  });
  return out;
}

}  // namespace

Ciphertext add(const Ciphertext& a, const Ciphertext& b) { return combine_two<false>(a, b); }
Ciphertext subtract(const Ciphertext& a, const Ciphertext& b) { return combine_two<true>(a, b); }

Ciphertext add_plain(const Ciphertext& a, const Plaintext& b) {
  require_fits(a, b);
  const Ring& ring = *a.ring;
  Ciphertext out = make(a.ring, a.size, a.level);
  copy(out.data.data(), a.data.data(), a.size * a.stride());
  each(ring, 1, a.level, [&](std::size_t k, std::size_t at) {
    u64* to = out.data.data() + at;
    ring.kernels(k).add(to, to, b.data.data() + at, ring.degree(), ring.modulus(k));
  });
  return out;
}

Ciphertext multiply_plain(const Ciphertext& a, const Plaintext& b) {
  require_fits(a, b);
  const Ring& ring = *a.ring;
  Ciphertext out = make(a.ring, a.size, a.level);
  each(ring, a.size, a.level, [&](std::size_t k, std::size_t at) {
    ring.kernels(k).multiply(out.data.data() + at, a.data.data() + at,
                             b.data.data() + k * ring.degree(), ring.degree(), ring.modulus(k));
  });
  return out;
}

Ciphertext multiply(const Ciphertext& a, const Ciphertext& b) {
  require_same(a, b);
  require(a.size == 2 && b.size == 2, "a product is of two ciphertexts of two polynomials");
  const Ring& ring = *a.ring;
  const std::size_t n = ring.degree();
  Ciphertext out = make(a.ring, 3, a.level);
  each(ring, 1, a.level, [&](std::size_t k, std::size_t at) {
    const Kernels& kernel = ring.kernels(k);
    const Modulus& m = ring.modulus(k);
    const u64 *a0 = a.polynomial(0) + at, *a1 = a.polynomial(1) + at;
    const u64 *b0 = b.polynomial(0) + at, *b1 = b.polynomial(1) + at;
    kernel.multiply(out.polynomial(0) + at, a0, b0, n, m);
    kernel.multiply(out.polynomial(1) + at, a0, b1, n, m);
    kernel.multiply_add(out.polynomial(1) + at, a1, b0, n, m);
    kernel.multiply(out.polynomial(2) + at, a1, b1, n, m);
  });
  return out;
}

Ciphertext relinearise(const Ciphertext& a, const Keys& keys) {
  require(a.size == 3, "only a product of three polynomials is relinearised");
  const Ring& ring = *a.ring;
  const SwitchingKey& key = relinearisation_key(keys, a.ring);
  const Digits digits(ring, a.polynomial(2), a.level);
  Buffer sum = ring.buffer(2 * (a.level + 1));
  switch_key(ring, digits, key, {.out = sum.data()});
  Ciphertext out = make(a.ring, 2, a.level);
  const std::size_t stride = (a.level + 1) * ring.degree();
  for (std::size_t i = 0; i < 2; ++i)
    ring.divide_by_special(out.polynomial(i), sum.data() + i * stride, a.level, a.polynomial(i));
  return out;
}

Ciphertext rescale(const Ciphertext& a) {
  require(a.level > 1, "there is no prime left to rescale by");
  Ciphertext out = make(a.ring, a.size, a.level - 1);
  for (std::size_t i = 0; i < a.size; ++i)
    a.ring->divide_by_last(out.polynomial(i), a.polynomial(i), a.level);
  return out;
}

// round((P c + k) / P) = c + round(k / P), so joining the two divisions changes no residue.
Ciphertext relinearise_rescale(const Ciphertext& a, const Keys& keys) {
  require(a.size == 3, "only a product of three polynomials is relinearised");
  require(a.level > 1, "there is no prime left to rescale by");
  const Ring& ring = *a.ring;
  const SwitchingKey& key = relinearisation_key(keys, a.ring);
  const Digits digits(ring, a.polynomial(2), a.level);
  Buffer base = ring.buffer(2 * a.level), sum = ring.buffer(2 * (a.level + 1));
  for (std::size_t i = 0; i < 2; ++i)
    ring.multiply_by_special(base.data() + i * a.stride(), a.polynomial(i), a.level);
  switch_key(ring, digits, key,
             {.out = sum.data(), .base0 = base.data(), .base1 = base.data() + a.stride()});
  Ciphertext out = make(a.ring, 2, a.level - 1);
  const std::size_t stride = (a.level + 1) * ring.degree();
  for (std::size_t i = 0; i < 2; ++i)
    ring.divide_by_both(out.polynomial(i), sum.data() + i * stride, a.level);
  return out;
}

Ciphertext drop(const Ciphertext& a, std::size_t level) {
  require(level >= 1 && level <= a.level, "levels only fall, to no less than 1");
  Ciphertext out = make(a.ring, a.size, level);
  for (std::size_t i = 0; i < a.size; ++i) copy(out.polynomial(i), a.polynomial(i), out.stride());
  return out;
}

// The automorphism first and the decomposition after it, which is SEAL's order.
Ciphertext rotate(const Ciphertext& a, u64 element, const Keys& keys) {
  require(a.size == 2, "only a ciphertext of two polynomials is rotated");
  const Ring& ring = *a.ring;
  const std::size_t n = ring.degree();
  const SwitchingKey& key = rotation_key(keys, element, a.ring);
  const Permutation& turn = ring.permutation(element);
  Buffer turned = ring.buffer(2 * a.level);
  each(ring, 2, a.level, [&](std::size_t k, std::size_t at) {
    ring.kernels(k).permute(turned.data() + at, a.data.data() + at, nullptr, n, turn,
                            ring.modulus(k));
  });
  const Digits digits(ring, turned.data() + a.stride(), a.level);
  Buffer sum = ring.buffer(2 * (a.level + 1));
  switch_key(ring, digits, key, {.out = sum.data()});
  Ciphertext out = make(a.ring, 2, a.level);
  ring.divide_by_special(out.polynomial(0), sum.data(), a.level, turned.data());
  ring.divide_by_special(out.polynomial(1), sum.data() + (a.level + 1) * n, a.level, nullptr);
  return out;
}

// The decomposition first, as in a transform: the automorphism then only permutes the digits.
std::vector<Ciphertext> rotations(const Ciphertext& a, const std::vector<u64>& elements,
                                  const Keys& keys) {
  require(a.size == 2, "only a ciphertext of two polynomials is rotated");
  const Ring& ring = *a.ring;
  const std::size_t n = ring.degree(), level = a.level;
  std::vector<Ciphertext> result;
  if (elements.empty()) return result;
  const Digits digits(ring, a.polynomial(1), level);
  Buffer turned = ring.buffer(level), sum = ring.buffer(2 * (level + 1));
  for (const u64 element : elements) {
    const SwitchingKey& key = rotation_key(keys, element, a.ring);
    const Permutation& turn = ring.permutation(element);
    each(ring, 1, level, [&](std::size_t k, std::size_t at) {
      ring.kernels(k).permute(turned.data() + at, a.data.data() + at, nullptr, n, turn,
                              ring.modulus(k));
    });
    switch_key(ring, digits, key, {.out = sum.data(), .permutation = &turn});
    Ciphertext out = make(a.ring, 2, level);
    ring.divide_by_special(out.polynomial(0), sum.data(), level, turned.data());
    ring.divide_by_special(out.polynomial(1), sum.data() + (level + 1) * n, level, nullptr);
    result.push_back(std::move(out));
  }
  return result;
}

Ciphertext fold(const Ciphertext& a, const std::vector<u64>& elements, const Keys& keys) {
  require(a.size == 2, "only a ciphertext of two polynomials is rotated");
  const Ring& ring = *a.ring;
  const std::size_t n = ring.degree(), level = a.level, words = a.stride();
  Ciphertext out = make(a.ring, 2, level);
  copy(out.data.data(), a.data.data(), 2 * words);
  if (elements.empty()) return out;
  // two sums over QP, in turn: the first half starts as P * c0, the second is key switching alone
  Buffer sum = ring.buffer(2 * (level + 1)), next = ring.buffer(2 * (level + 1));
  ring.multiply_by_special(sum.data(), a.polynomial(0), level);
  std::memset(sum.data() + words, 0, n * sizeof(u64));
  u64* c1 = out.polynomial(1);
  for (const u64 element : elements) {
    const SwitchingKey& key = rotation_key(keys, element, a.ring);
    const Digits digits(ring, c1, level);
    switch_key(ring, digits, key,
               {.out = next.data(), .permutation = &ring.permutation(element),
                .base0 = sum.data(), .shifted0 = sum.data(), .special_too = true});
    ring.divide_by_special(c1, next.data() + words + n, level, c1);
    std::swap(sum, next);
  }
  ring.divide_by_special(out.polynomial(0), sum.data(), level, nullptr);
  return out;
}

std::vector<Ciphertext> combine(const std::vector<const Ciphertext*>& columns,
                                const std::vector<std::int64_t>& weights, std::size_t rows) {
  require(!columns.empty() && rows > 0 && weights.size() == rows * columns.size(),
          "there is one weight for each row and column");
  const RingPtr& ring = columns.front()->ring;
  const std::size_t level = columns.front()->level, n = ring->degree();
  for (const Ciphertext* column : columns) {
    require_same(*column, *columns.front());
    require(column->size == 2, "columns are ciphertexts of two polynomials");
  }
  require(level > 1, "there is no prime left to rescale by");
  std::vector<Ciphertext> raw, result;
  for (std::size_t r = 0; r < rows; ++r) raw.push_back(make(ring, 2, level));
  ring->parallel(level, [&](std::size_t k) {
    const Modulus& m = ring->modulus(k);
    std::vector<u64> residues(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const u64 magnitude = weights[i] < 0 ? ~static_cast<u64>(weights[i]) + 1
                                           : static_cast<u64>(weights[i]);
      const u64 residue = reduce(magnitude, m);
      residues[i] = weights[i] < 0 && residue ? m.value - residue : residue;
    }
    std::vector<const u64*> in(columns.size());
    std::vector<u64*> out(rows);
    for (std::size_t i = 0; i < 2; ++i) {
      for (std::size_t c = 0; c < columns.size(); ++c)
        in[c] = columns[c]->polynomial(i) + k * n;
      for (std::size_t r = 0; r < rows; ++r) out[r] = raw[r].polynomial(i) + k * n;
      ring->kernels(k).gemm({out.data(), in.data(), residues.data(), rows, columns.size()}, n, m);
    }
  });
  for (const Ciphertext& ciphertext : raw) result.push_back(rescale(ciphertext));
  return result;
}

}  // namespace tg

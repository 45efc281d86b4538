// AVX512-IFMA kernels: eight 52-bit lanes, primes of at most 50 bits.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

// Standard headers stay outside, so that no shared inline function is compiled for this set.
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512ifma")

namespace tg {

namespace {

#include "blake2.hpp"
using Eight = u64 __attribute__((vector_size(64)));

using V = __m512i;
constexpr u64 kMask52 = (u64{1} << 52) - 1;

inline V load(const u64* p) { return _mm512_loadu_si512(p); }
inline void store(u64* p, V v) { _mm512_storeu_si512(p, v); }
inline V all(u64 x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline V add_(V a, V b) { return _mm512_add_epi64(a, b); }
inline V sub_(V a, V b) { return _mm512_sub_epi64(a, b); }
inline V low52(V a) { return _mm512_and_si512(a, all(kMask52)); }
inline V madd_low(V sum, V a, V b) { return _mm512_madd52lo_epu64(sum, a, b); }
inline V madd_high(V sum, V a, V b) { return _mm512_madd52hi_epu64(sum, a, b); }
// a - q where a >= q: otherwise the difference wraps and is the larger one
inline V subtract_if_(V a, V q) { return _mm512_min_epu64(a, sub_(a, q)); }

// a * w mod q, below 2q, for any a < 2^52
inline V multiply_lazy_(V a, V w, V quotient, V q) {
  const V zero = _mm512_setzero_si512();
  const V h = madd_high(zero, a, quotient);
  return low52(sub_(madd_low(zero, a, w), madd_low(zero, h, q)));
}

struct Constants {
  V q, twice, four, one, power52, power52q, power104, power104q;
  explicit Constants(const Modulus& m)
      : q(all(m.value)), twice(all(2 * m.value)), four(all(4 * m.value)), one(all(m.one52)),
        power52(all(m.power52.value)), power52q(all(m.power52.quotient52)),
        power104(all(m.power104.value)), power104q(all(m.power104.quotient52)) {}
};

// a mod q, below 2q, for any a < 2^52
inline V reduce_lazy(V a, const Constants& c) {
  const V zero = _mm512_setzero_si512();
  return low52(sub_(a, madd_low(zero, madd_high(zero, a, c.one), c.q)));
}

// high * 2^52 + low mod q, for any 64-bit lanes
inline V reduce_sum(V low, V high, const Constants& c) {
  high = add_(high, _mm512_srli_epi64(low, 52));
  const V top = _mm512_srli_epi64(high, 52);
  V r = reduce_lazy(low52(low), c);
  r = add_(r, multiply_lazy_(low52(high), c.power52, c.power52q, c.q));
  r = add_(r, multiply_lazy_(top, c.power104, c.power104q, c.q));  // all three: below 6q
  return subtract_if_(subtract_if_(subtract_if_(r, c.four), c.twice), c.q);
}

// The same, for a `high` whose carry-in leaves it below 2^52: up to 15 products of residues < 2^50.
inline V reduce_short(V low, V high, const Constants& c) {
  high = add_(high, _mm512_srli_epi64(low, 52));
  V r = reduce_lazy(low52(low), c);
  r = add_(r, multiply_lazy_(high, c.power52, c.power52q, c.q));
  return subtract_if_(subtract_if_(r, c.twice), c.q);
}
constexpr std::size_t kShortTerms = 14;

// x, y below 4q -> below 4q
inline void forward_(V& x, V& y, V w, V wq, const Constants& c) {
  const V u = subtract_if_(x, c.twice), v = multiply_lazy_(y, w, wq, c.q);
  x = add_(u, v);
  y = sub_(add_(u, c.twice), v);
}

// x, y below 2q -> below 2q
inline void backward_(V& x, V& y, V w, V wq, const Constants& c) {
  const V u = x, v = y;
  x = subtract_if_(add_(u, v), c.twice);
  y = multiply_lazy_(sub_(add_(u, c.twice), v), w, wq, c.q);
}

inline V index(int a, int b, int c, int d, int e, int f, int g, int h) {
  return _mm512_setr_epi64(a, b, c, d, e, f, g, h);
}
inline V choose(V a, V which, V b) { return _mm512_permutex2var_epi64(a, which, b); }
inline V load4(const u64* p) {  // four values, doubled
  return _mm512_permutexvar_epi64(index(0, 0, 1, 1, 2, 2, 3, 3),
                                  _mm512_castsi256_si512(_mm256_loadu_si256(
                                      reinterpret_cast<const __m256i*>(p))));
}
inline V load2(const u64* p) {  // two values, four times
  return _mm512_permutexvar_epi64(
      index(0, 0, 0, 0, 1, 1, 1, 1),
      _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// How the pairs at distance 4, 2 and 1 are taken out of two vectors (x and y) and put back.
struct Shuffle {
  V x, y, first, second;
};
inline Shuffle shuffle4() {
  return {index(0, 1, 2, 3, 8, 9, 10, 11), index(4, 5, 6, 7, 12, 13, 14, 15),
          index(0, 1, 2, 3, 8, 9, 10, 11), index(4, 5, 6, 7, 12, 13, 14, 15)};
}
inline Shuffle shuffle2() {
  return {index(0, 1, 4, 5, 8, 9, 12, 13), index(2, 3, 6, 7, 10, 11, 14, 15),
          index(0, 1, 8, 9, 2, 3, 10, 11), index(4, 5, 12, 13, 6, 7, 14, 15)};
}
inline Shuffle shuffle1() {
  return {index(0, 2, 4, 6, 8, 10, 12, 14), index(1, 3, 5, 7, 9, 11, 13, 15),
          index(0, 8, 1, 9, 2, 10, 3, 11), index(4, 12, 5, 13, 6, 14, 7, 15)};
}

template <bool kForward>
inline void within(V& a, V& b, const Shuffle& s, V w, V wq, const Constants& c) {
  V x = choose(a, s.x, b), y = choose(a, s.y, b);
  if constexpr (kForward) {
    forward_(x, y, w, wq, c);
  } else {
    backward_(x, y, w, wq, c);
  }
  a = choose(x, s.first, y);
  b = choose(x, s.second, y);
}

struct Roots {
  const u64 *root, *quotient;
  explicit Roots(const NttTables::Direction& d) : root(d.root.data()), quotient(d.quotient52.data()) {}
  V value(std::size_t i) const { return all(root[i]); }
  V ratio(std::size_t i) const { return all(quotient[i]); }
};

// Two stages at once on one block: distances gap and gap / 2; `parent` numbers the block's root.
inline void forward_twice(u64* block, const u64* from, std::size_t gap, std::size_t parent,
                          const Roots& r, const Constants& c) {
  const std::size_t half = gap >> 1;
  const V w = r.value(parent), wq = r.ratio(parent);
  const V w0 = r.value(2 * parent), w0q = r.ratio(2 * parent);
  const V w1 = r.value(2 * parent + 1), w1q = r.ratio(2 * parent + 1);
  for (std::size_t j = 0; j < half; j += 8) {
    V x0 = load(from + j), x1 = load(from + j + half);
    V x2 = load(from + j + gap), x3 = load(from + j + gap + half);
    forward_(x0, x2, w, wq, c);
    forward_(x1, x3, w, wq, c);
    forward_(x0, x1, w0, w0q, c);
    forward_(x2, x3, w1, w1q, c);
    store(block + j, x0);
    store(block + j + half, x1);
    store(block + j + gap, x2);
    store(block + j + gap + half, x3);
  }
}

inline void backward_twice(u64* block, std::size_t gap, std::size_t parent, const Roots& r,
                           const Constants& c) {
  const V w = r.value(parent), wq = r.ratio(parent);
  const V w0 = r.value(2 * parent), w0q = r.ratio(2 * parent);
  const V w1 = r.value(2 * parent + 1), w1q = r.ratio(2 * parent + 1);
  for (std::size_t j = 0; j < gap; j += 8) {
    V x0 = load(block + j), x1 = load(block + j + gap);
    V x2 = load(block + j + 2 * gap), x3 = load(block + j + 3 * gap);
    backward_(x0, x1, w0, w0q, c);
    backward_(x2, x3, w1, w1q, c);
    backward_(x0, x2, w, wq, c);
    backward_(x1, x3, w, wq, c);
    store(block + j, x0);
    store(block + j + gap, x1);
    store(block + j + 2 * gap, x2);
    store(block + j + 3 * gap, x3);
  }
}

// The last three forward stages: pairs at distance 4, 2 and 1 within sixteen values.
inline void forward_end(u64* a, std::size_t from, std::size_t to, std::size_t n, const Roots& r,
                        const Constants& c) {
  const Shuffle s4 = shuffle4(), s2 = shuffle2(), s1 = shuffle1();
  for (std::size_t i = from; i < to; i += 16) {
    V x = load(a + i), y = load(a + i + 8);
    const std::size_t at4 = n / 8 + i / 8, at2 = n / 4 + i / 4, at1 = n / 2 + i / 2;
    within<true>(x, y, s4, load2(r.root + at4), load2(r.quotient + at4), c);
    within<true>(x, y, s2, load4(r.root + at2), load4(r.quotient + at2), c);
    within<true>(x, y, s1, load(r.root + at1), load(r.quotient + at1), c);
    store(a + i, subtract_if_(subtract_if_(x, c.twice), c.q));
    store(a + i + 8, subtract_if_(subtract_if_(y, c.twice), c.q));
  }
}

inline void backward_start(u64* a, const u64* source, std::size_t from, std::size_t to,
                           std::size_t n, const Roots& r, const Constants& c) {
  const Shuffle s4 = shuffle4(), s2 = shuffle2(), s1 = shuffle1();
  for (std::size_t i = from; i < to; i += 16) {
    V x = load(source + i), y = load(source + i + 8);
    const std::size_t at4 = n / 8 + i / 8, at2 = n / 4 + i / 4, at1 = n / 2 + i / 2;
    within<false>(x, y, s1, load(r.root + at1), load(r.quotient + at1), c);
    within<false>(x, y, s2, load4(r.root + at2), load4(r.quotient + at2), c);
    within<false>(x, y, s4, load2(r.root + at4), load2(r.quotient + at4), c);
    store(a + i, x);
    store(a + i + 8, y);
  }
}

// Values below 4q. Once a block fits the first-level cache, all its stages are done before the next.
constexpr std::size_t kCached = 2048;

void ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const Constants c(tables.modulus);
  const Roots r(tables.forward);
  std::size_t blocks = 1, size = n;
  if ((tables.log_degree - 3) % 2) {
    const V w = r.value(1), wq = r.ratio(1);
    size >>= 1;
    for (std::size_t j = 0; j < size; j += 8) {
      V x = load(source + j), y = load(source + j + size);
      forward_(x, y, w, wq, c);
      store(a + j, x);
      store(a + j + size, y);
    }
    source = a;
    blocks = 2;
  }
  for (; size > kCached; blocks <<= 2, size >>= 2, source = a)
    for (std::size_t i = 0; i < blocks; ++i)
      forward_twice(a + i * size, source + i * size, size >> 1, blocks + i, r, c);
  for (std::size_t b = 0; b < blocks; ++b) {
    const u64* from = source;
    std::size_t inner = 1, part = size;
    for (; part >= 32; inner <<= 2, part >>= 2, from = a)
      for (std::size_t i = b * inner; i < (b + 1) * inner; ++i)
        forward_twice(a + i * part, from + i * part, part >> 1, blocks * inner + i, r, c);
    forward_end(a, b * size, (b + 1) * size, n, r, c);
  }
}

// Values below 2q.
void inverse_ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const Constants c(tables.modulus);
  const Roots r(tables.backward);
  std::size_t cached = 8;  // grows by pairs of stages to at most kCached, and to at most n / 4
  while (4 * cached <= kCached && 4 * cached < n) cached <<= 2;
  for (std::size_t b = 0; b < n / cached; ++b) {
    backward_start(a, source, b * cached, (b + 1) * cached, n, r, c);
    for (std::size_t gap = 8; 4 * gap <= cached; gap <<= 2)
      for (std::size_t i = b * cached / (4 * gap); i < (b + 1) * cached / (4 * gap); ++i)
        backward_twice(a + 4 * i * gap, gap, n / (4 * gap) + i, r, c);
  }
  std::size_t gap = cached;
  for (; 4 * gap < n; gap <<= 2)
    for (std::size_t i = 0; i < n / (4 * gap); ++i)
      backward_twice(a + 4 * i * gap, gap, n / (4 * gap) + i, r, c);
  if (4 * gap == n) {  // an odd number of stages is left: one, before the last
    for (std::size_t i = 0; i < 2; ++i) {
      const V w = r.value(2 + i), wq = r.ratio(2 + i);
      u64* block = a + 2 * i * gap;
      for (std::size_t j = 0; j < gap; j += 8) {
        V x = load(block + j), y = load(block + j + gap);
        backward_(x, y, w, wq, c);
        store(block + j, x);
        store(block + j + gap, y);
      }
    }
    gap <<= 1;
  }
  const V s = all(tables.inverse_degree.value), sq = all(tables.inverse_degree.quotient52);
  const V t = all(tables.inverse_degree_last.value), tq = all(tables.inverse_degree_last.quotient52);
  for (std::size_t j = 0; j < gap; j += 8) {
    const V u = load(a + j), v = load(a + j + gap);
    store(a + j, subtract_if_(multiply_lazy_(add_(u, v), s, sq, c.q), c.q));
    const V difference = sub_(add_(u, c.twice), v);
    store(a + j + gap, subtract_if_(multiply_lazy_(difference, t, tq, c.q), c.q));
  }
}

void add(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const V q = all(m.value);
  for (std::size_t i = 0; i < n; i += 8)
    store(out + i, subtract_if_(add_(load(a + i), load(b + i)), q));
}

void subtract(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const V q = all(m.value);
  for (std::size_t i = 0; i < n; i += 8)
    store(out + i, subtract_if_(sub_(add_(load(a + i), q), load(b + i)), q));
}

void multiply_each(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const Constants c(m);
  const V zero = _mm512_setzero_si512();
  for (std::size_t i = 0; i < n; i += 8) {
    const V x = load(a + i), y = load(b + i);
    store(out + i, reduce_short(madd_low(zero, x, y), madd_high(zero, x, y), c));
  }
}

void multiply_add(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const Constants c(m);
  const V zero = _mm512_setzero_si512();
  for (std::size_t i = 0; i < n; i += 8) {
    const V x = load(a + i), y = load(b + i);
    store(out + i, reduce_short(madd_low(load(out + i), x, y), madd_high(zero, x, y), c));
  }
}

void scale(u64* out, const u64* a, std::size_t n, const Factor& f, const Modulus& m) {
  const V q = all(m.value), w = all(f.value), wq = all(f.quotient52);
  for (std::size_t i = 0; i < n; i += 8)
    store(out + i, subtract_if_(multiply_lazy_(load(a + i), w, wq, q), q));
}

void spread(u64* out, const u64* a, std::size_t n, u64 bias, const Modulus& m) {
  const Constants c(m);
  const V b = all(bias);
  for (std::size_t i = 0; i < n; i += 8)
    store(out + i, add_(subtract_if_(reduce_lazy(load(a + i), c), c.q), b));
}

void spread2(u64* out, const u64* a, const u64* b, std::size_t n, const Factor& f, u64 bias,
             const Modulus& m) {
  const Constants c(m);
  const V w = all(f.value), wq = all(f.quotient52), fixed = all(bias);
  for (std::size_t i = 0; i < n; i += 8) {
    const V x = subtract_if_(reduce_lazy(load(a + i), c), c.q);
    const V y = subtract_if_(multiply_lazy_(load(b + i), w, wq, c.q), c.q);
    store(out + i, add_(add_(x, y), fixed));
  }
}

void close(u64* out, const u64* x, const u64* u, std::size_t n, const Factor& f,
           const u64* addend, const Modulus& m) {
  const V q = all(m.value), twice = all(2 * m.value), w = all(f.value), wq = all(f.quotient52);
  for (std::size_t i = 0; i < n; i += 8) {
    const V difference = sub_(add_(load(x + i), twice), load(u + i));
    V r = subtract_if_(multiply_lazy_(difference, w, wq, q), q);
    if (addend != nullptr) r = subtract_if_(add_(r, load(addend + i)), q);
    store(out + i, r);
  }
}

void permute(u64* out, const u64* a, const u64* base, std::size_t n, const Permutation& p,
             const Modulus& m) {
  const V q = all(m.value);
  for (std::size_t block = 0; block < n / 8; ++block) {
    V x = _mm512_permutexvar_epi64(load(p.lanes[p.pattern[block]].data()),
                                   load(a + p.source[block]));
    if (base != nullptr) x = subtract_if_(add_(x, load(base + 8 * block)), q);
    store(out + 8 * block, x);
  }
}

template <bool kPermuted, bool kShort>
void inner_(const InnerProduct& p, std::size_t n, const Constants& c) {
  const V zero = _mm512_setzero_si512();
  for (std::size_t block = 0; block < n / 8; ++block) {
    const std::size_t at = 8 * block;
    std::size_t from = at;
    V lanes = zero;
    if constexpr (kPermuted) {
      from = p.permutation->source[block];
      lanes = load(p.permutation->lanes[p.permutation->pattern[block]].data());
    }
    const auto take = [&](const u64* x) {
      V v = load(x + from);
      if constexpr (kPermuted) v = _mm512_permutexvar_epi64(lanes, v);
      return v;
    };
    V low0 = p.base0 ? load(p.base0 + at) : zero, high0 = zero;
    V low1 = p.base1 ? load(p.base1 + at) : zero, high1 = zero;
    if (p.shifted0) low0 = add_(low0, take(p.shifted0));
    const auto sum = [&](std::size_t start, std::size_t end) {
      for (std::size_t i = start; i < end; ++i) {
        const V digit = take(p.digits[i]), k0 = load(p.key0[i] + at), k1 = load(p.key1[i] + at);
        low0 = madd_low(low0, digit, k0);
        high0 = madd_high(high0, digit, k0);
        low1 = madd_low(low1, digit, k1);
        high1 = madd_high(high1, digit, k1);
      }
    };
    if constexpr (kShort) {
      sum(0, p.count);
    } else {
      for (std::size_t start = 0; start < p.count; start += kVectorTerms - 1) {
        if (start > 0) {
          low0 = reduce_sum(low0, high0, c);
          low1 = reduce_sum(low1, high1, c);
          high0 = high1 = zero;
        }
        const std::size_t end = start + kVectorTerms - 1;
        sum(start, end < p.count ? end : p.count);
      }
    }
    store(p.out0 + at, kShort ? reduce_short(low0, high0, c) : reduce_sum(low0, high0, c));
    store(p.out1 + at, kShort ? reduce_short(low1, high1, c) : reduce_sum(low1, high1, c));
  }
}

void inner(const InnerProduct& p, std::size_t n, const Modulus& m) {
  const Constants c(m);
  const bool brief = p.count <= kShortTerms;
  if (p.permutation != nullptr) {
    brief ? inner_<true, true>(p, n, c) : inner_<true, false>(p, n, c);
  } else {
    brief ? inner_<false, true>(p, n, c) : inner_<false, false>(p, n, c);
  }
}

template <std::size_t kRows>
void gemm_rows(const Gemm& g, std::size_t row, std::size_t n, const Constants& c) {
  const V zero = _mm512_setzero_si512();
  const u64* weights = g.weights + row * g.columns;
  for (std::size_t i = 0; i < n; i += 8) {
    V low[kRows], high[kRows];
    for (std::size_t r = 0; r < kRows; ++r) low[r] = high[r] = zero;
    for (std::size_t start = 0; start < g.columns;) {
      const std::size_t end =
          g.columns - start < kVectorTerms ? g.columns : start + kVectorTerms - 1;
      for (std::size_t column = start; column < end; ++column) {
        const V x = load(g.in[column] + i);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) {
          const V w = all(weights[r * g.columns + column]);
          low[r] = madd_low(low[r], x, w);
          high[r] = madd_high(high[r], x, w);
        }
      }
      start = end;
      if (start == g.columns) break;
      for (std::size_t r = 0; r < kRows; ++r) {
        low[r] = reduce_sum(low[r], high[r], c);
        high[r] = zero;
      }
    }
    for (std::size_t r = 0; r < kRows; ++r)
      store(g.out[row + r] + i, reduce_sum(low[r], high[r], c));
  }
}

void gemm(const Gemm& g, std::size_t n, const Modulus& m) {
  const Constants c(m);
  std::size_t row = 0;
  for (; row + 8 <= g.rows; row += 8) gemm_rows<8>(g, row, n, c);
  for (; row + 4 <= g.rows; row += 4) gemm_rows<4>(g, row, n, c);
  for (; row < g.rows; ++row) gemm_rows<1>(g, row, n, c);
}

const Kernels kKernels{"ifma", kMaxVectorBits, ntt,    inverse_ntt, add,   subtract, multiply_each,
                       multiply_add, scale,    spread, spread2,     close, permute,  inner, gemm, output_nodes<Eight>};

}  // namespace

}  // namespace tg

#pragma GCC pop_options
#endif

namespace tg {

const Kernels* ifma_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512ifma");
  return runs ? &kKernels : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace tg

// AVX2 and FMA kernels: residues of primes of at most 50 bits as doubles, four lanes. All values are
// integers below 2^53 in magnitude, so every sum is exact; products are split exactly by FMA.
#include "kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

// Standard headers stay outside, so that no shared inline function is compiled for this set.
#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace tg {

namespace {

#include "blake2.hpp"
using Four = u64 __attribute__((vector_size(32)));

using V = __m256d;
constexpr double kTwo52 = 4503599627370496.0;
constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer

inline V all(double x) { return _mm256_set1_pd(x); }
inline V load(const u64* p) { return _mm256_loadu_pd(reinterpret_cast<const double*>(p)); }
inline V load(const double* p) { return _mm256_loadu_pd(p); }
inline void store(u64* p, V v) { _mm256_storeu_pd(reinterpret_cast<double*>(p), v); }
inline V add_(V a, V b) { return _mm256_add_pd(a, b); }
inline V sub_(V a, V b) { return _mm256_sub_pd(a, b); }

// Integers below 2^52 to doubles and back: the bits of 2^52 + x are those of 2^52 with x below.
inline V to_real(V bits) { return sub_(_mm256_or_pd(bits, all(kTwo52)), all(kTwo52)); }
inline V to_bits(V x) { return _mm256_xor_pd(add_(x, all(kTwo52)), all(kTwo52)); }
inline V take(const u64* p) { return to_real(load(p)); }

struct Constants {
  V q, inverse;
  explicit Constants(const Modulus& m)
      : q(all(static_cast<double>(m.value))), inverse(all(1.0 / static_cast<double>(m.value))) {}
};

// x - q * round(x / q): at most 0.51 q in magnitude, for |x| < 2^53 and |x / q| < 2^51
inline V centre(V x, const Constants& c) {
  const V k = sub_(_mm256_fmadd_pd(x, c.inverse, all(kRound)), all(kRound));
  return _mm256_fnmadd_pd(k, c.q, x);
}

// -q < x < q to 0 <= x < q
inline V canonical(V x, const Constants& c) {
  return add_(x, _mm256_and_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ), c.q));
}

// a * w mod q for |a| <= 4q and |w| <= q / 2: at most 0.75 q in magnitude
inline V multiply_(V a, V w, V ratio, const Constants& c) {
  const V high = _mm256_mul_pd(a, w), low = _mm256_fmsub_pd(a, w, high);
  const V k = sub_(_mm256_fmadd_pd(a, ratio, all(kRound)), all(kRound));
  return add_(_mm256_fnmadd_pd(k, c.q, high), low);
}

// a * b mod q for residues: at most 0.76 q in magnitude
inline V multiply_any(V a, V b, const Constants& c) {
  const V high = _mm256_mul_pd(a, b), low = _mm256_fmsub_pd(a, b, high);
  const V k = sub_(_mm256_fmadd_pd(high, c.inverse, all(kRound)), all(kRound));
  return add_(_mm256_fnmadd_pd(k, c.q, high), low);
}

struct Root {
  V value, ratio;
};
inline Root one(const NttTables::Direction& d, std::size_t at) {
  return {all(d.real[at]), all(d.ratio[at])};
}
inline Root four(const NttTables::Direction& d, std::size_t at) {
  return {load(&d.real[at]), load(&d.ratio[at])};
}
inline V twice(const double* p) {  // two values, doubled
  return _mm256_permute4x64_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), 0b01010000);
}
inline Root two(const NttTables::Direction& d, std::size_t at) {
  return {twice(&d.real[at]), twice(&d.ratio[at])};
}
inline Root fixed(const Factor& f, const Modulus& m) {
  const double real = centred(f.value, m.value);
  return {all(real), all(real / static_cast<double>(m.value))};
}

inline void forward_(V& x, V& y, const Root& w, const Constants& c) {
  const V v = multiply_(y, w.value, w.ratio, c), u = x;
  x = add_(u, v);
  y = sub_(u, v);
}

inline void backward_(V& x, V& y, const Root& w, const Constants& c) {
  const V u = x, v = y;
  x = add_(u, v);
  y = multiply_(sub_(u, v), w.value, w.ratio, c);
}

// The magnitudes, in q: 4 at most at the start; x is centred to 0.51 before each pass, so that two
// stages give at most 0.51 + 2 * 0.75 = 2.01, and three at the end 2.76.
void ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const Constants c(tables.modulus);
  const auto& d = tables.forward;
  std::size_t blocks = 1, gap = n >> 1;
  {
    const Root w = one(d, 1);
    for (std::size_t j = 0; j < gap; j += 4) {
      V x = centre(take(source + j), c), y = take(source + j + gap);
      forward_(x, y, w, c);
      store(a + j, x);
      store(a + j + gap, y);
    }
    blocks <<= 1;
    gap >>= 1;
  }
  for (; gap >= 8; blocks <<= 2, gap >>= 2) {
    const std::size_t half = gap >> 1;
    for (std::size_t i = 0; i < blocks; ++i) {
      const Root w = one(d, blocks + i);
      const Root w0 = one(d, 2 * (blocks + i)), w1 = one(d, 2 * (blocks + i) + 1);
      u64* block = a + 2 * i * gap;
      for (std::size_t j = 0; j < half; j += 4) {
        V x0 = centre(load(block + j), c), x1 = centre(load(block + j + half), c);
        V x2 = load(block + j + gap), x3 = load(block + j + gap + half);
        forward_(x0, x2, w, c);
        forward_(x1, x3, w, c);
        forward_(x0, x1, w0, c);
        forward_(x2, x3, w1, c);
        store(block + j, x0);
        store(block + j + half, x1);
        store(block + j + gap, x2);
        store(block + j + gap + half, x3);
      }
    }
  }
  const bool another = gap == 4;
  for (std::size_t i = 0; i < n; i += 8) {
    V x = centre(load(a + i), c), y = load(a + i + 4);
    if (another) {
      forward_(x, y, one(d, n / 8 + i / 8), c);
    } else {
      y = centre(y, c);
    }
    V first = _mm256_permute2f128_pd(x, y, 0x20), second = _mm256_permute2f128_pd(x, y, 0x31);
    forward_(first, second, two(d, n / 4 + i / 4), c);
    x = _mm256_unpacklo_pd(first, second);
    y = _mm256_unpackhi_pd(first, second);
    forward_(x, y, four(d, n / 2 + i / 2), c);
    x = to_bits(canonical(centre(x, c), c));
    y = to_bits(canonical(centre(y, c), c));
    first = _mm256_unpacklo_pd(x, y);
    second = _mm256_unpackhi_pd(x, y);
    store(a + i, _mm256_permute2f128_pd(first, second, 0x20));
    store(a + i + 4, _mm256_permute2f128_pd(first, second, 0x31));
  }
}

// The magnitudes: at most 1 at the start of a pass, 2 after one stage, 4 after two; then centred.
void inverse_ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const Constants c(tables.modulus);
  const auto& d = tables.backward;
  for (std::size_t i = 0; i < n; i += 8) {
    V x = take(source + i), y = take(source + i + 4);
    V first = _mm256_permute2f128_pd(x, y, 0x20), second = _mm256_permute2f128_pd(x, y, 0x31);
    x = _mm256_unpacklo_pd(first, second);
    y = _mm256_unpackhi_pd(first, second);
    backward_(x, y, four(d, n / 2 + i / 2), c);
    first = _mm256_unpacklo_pd(x, y);
    second = _mm256_unpackhi_pd(x, y);
    backward_(first, second, two(d, n / 4 + i / 4), c);
    first = centre(first, c);
    store(a + i, _mm256_permute2f128_pd(first, second, 0x20));
    store(a + i + 4, _mm256_permute2f128_pd(first, second, 0x31));
  }
  std::size_t gap = 4, blocks = n >> 3;
  for (; blocks >= 4; blocks >>= 2, gap <<= 2) {
    const std::size_t parents = blocks >> 1;
    for (std::size_t i = 0; i < parents; ++i) {
      const Root w = one(d, parents + i);
      const Root w0 = one(d, 2 * (parents + i)), w1 = one(d, 2 * (parents + i) + 1);
      u64* block = a + 4 * i * gap;
      for (std::size_t j = 0; j < gap; j += 4) {
        V x0 = load(block + j), x1 = load(block + j + gap);
        V x2 = load(block + j + 2 * gap), x3 = load(block + j + 3 * gap);
        backward_(x0, x1, w0, c);
        backward_(x2, x3, w1, c);
        backward_(x0, x2, w, c);
        backward_(x1, x3, w, c);
        store(block + j, centre(x0, c));
        store(block + j + gap, centre(x1, c));
        store(block + j + 2 * gap, x2);
        store(block + j + 3 * gap, x3);
      }
    }
  }
  if (blocks == 2) {  // an odd number of stages is left: one, before the last
    for (std::size_t i = 0; i < 2; ++i) {
      const Root w = one(d, 2 + i);
      u64* block = a + 2 * i * gap;
      for (std::size_t j = 0; j < gap; j += 4) {
        V x = load(block + j), y = load(block + j + gap);
        backward_(x, y, w, c);
        store(block + j, x);
        store(block + j + gap, y);
      }
    }
    gap <<= 1;
  }
  const Root s = fixed(tables.inverse_degree, tables.modulus);
  const Root t = fixed(tables.inverse_degree_last, tables.modulus);
  for (std::size_t j = 0; j < gap; j += 4) {
    const V u = load(a + j), v = load(a + j + gap);
    store(a + j, to_bits(canonical(multiply_(add_(u, v), s.value, s.ratio, c), c)));
    store(a + j + gap, to_bits(canonical(multiply_(sub_(u, v), t.value, t.ratio, c), c)));
  }
}

void add(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const Constants c(m);
  for (std::size_t i = 0; i < n; i += 4)
    store(out + i, to_bits(canonical(sub_(add_(take(a + i), take(b + i)), c.q), c)));
}

void subtract(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const Constants c(m);
  for (std::size_t i = 0; i < n; i += 4)
    store(out + i, to_bits(canonical(sub_(take(a + i), take(b + i)), c)));
}

void multiply_each(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const Constants c(m);
  for (std::size_t i = 0; i < n; i += 4)
    store(out + i, to_bits(canonical(multiply_any(take(a + i), take(b + i), c), c)));
}

void multiply_add(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  const Constants c(m);
  for (std::size_t i = 0; i < n; i += 4) {
    const V r = canonical(multiply_any(take(a + i), take(b + i), c), c);
    store(out + i, to_bits(canonical(sub_(add_(r, take(out + i)), c.q), c)));
  }
}

void scale(u64* out, const u64* a, std::size_t n, const Factor& f, const Modulus& m) {
  const Constants c(m);
  const Root w = fixed(f, m);
  for (std::size_t i = 0; i < n; i += 4)
    store(out + i, to_bits(canonical(multiply_(take(a + i), w.value, w.ratio, c), c)));
}

void spread(u64* out, const u64* a, std::size_t n, u64 bias, const Modulus& m) {
  const Constants c(m);
  const V b = all(static_cast<double>(bias));
  for (std::size_t i = 0; i < n; i += 4)
    store(out + i, to_bits(add_(canonical(centre(take(a + i), c), c), b)));
}

void spread2(u64* out, const u64* a, const u64* b, std::size_t n, const Factor& f, u64 bias,
             const Modulus& m) {
  const Constants c(m);
  const Root w = fixed(f, m);
  const V fix = all(static_cast<double>(bias));
  for (std::size_t i = 0; i < n; i += 4) {
    const V x = canonical(centre(take(a + i), c), c);
    const V y = canonical(multiply_(centre(take(b + i), c), w.value, w.ratio, c), c);
    store(out + i, to_bits(add_(add_(x, y), fix)));
  }
}

void close(u64* out, const u64* x, const u64* u, std::size_t n, const Factor& f,
           const u64* addend, const Modulus& m) {
  const Constants c(m);
  const Root w = fixed(f, m);
  for (std::size_t i = 0; i < n; i += 4) {
    V r = canonical(multiply_(sub_(take(x + i), take(u + i)), w.value, w.ratio, c), c);
    if (addend != nullptr) r = canonical(sub_(add_(r, take(addend + i)), c.q), c);
    store(out + i, to_bits(r));
  }
}

}  // namespace

}  // namespace tg

#pragma GCC pop_options
#endif

namespace tg {

const Kernels* avx2_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
  // Sums of products stay scalar: 64-bit multipliers with carry are as fast as split doubles.
  static const Kernels kernels{
      "avx2",       kMaxVectorBits, ntt,    inverse_ntt, add,
      subtract,     multiply_each,  multiply_add, scale, spread,
      spread2,      close,          scalar_kernels().permute, scalar_kernels().inner,
      scalar_kernels().gemm, output_nodes<Four>};
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace tg

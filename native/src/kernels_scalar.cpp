// Portable kernels: 64-bit words, 128-bit products.
#include <algorithm>

#include "kernels.hpp"

namespace tg {

namespace {

#include "blake2.hpp"

// Harvey's butterflies: values below 4q forward, below 2q backward.
void ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const u64 q = tables.modulus.value, twice = 2 * q;
  const auto& d = tables.forward;
  std::size_t gap = n;
  for (std::size_t blocks = 1; blocks < n; blocks <<= 1, source = a) {
    gap >>= 1;
    for (std::size_t i = 0; i < blocks; ++i) {
      const Factor w{d.root[blocks + i], d.quotient64[blocks + i], 0};
      const u64* from = source + 2 * i * gap;
      u64* x = a + 2 * i * gap;
      for (std::size_t j = 0; j < gap; ++j) {
        const u64 u = subtract_if(from[j], twice);
        const u64 v = multiply_lazy(from[j + gap], w, q);
        x[j] = u + v;
        x[j + gap] = u + twice - v;
      }
    }
  }
  for (std::size_t i = 0; i < n; ++i) a[i] = subtract_if(subtract_if(a[i], twice), q);
}

void inverse_ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const u64 q = tables.modulus.value, twice = 2 * q;
  const auto& d = tables.backward;
  std::size_t gap = 1;
  for (std::size_t blocks = n >> 1; blocks > 1; blocks >>= 1, gap <<= 1, source = a) {
    for (std::size_t i = 0; i < blocks; ++i) {
      const Factor w{d.root[blocks + i], d.quotient64[blocks + i], 0};
      const u64* from = source + 2 * i * gap;
      u64* x = a + 2 * i * gap;
      for (std::size_t j = 0; j < gap; ++j) {
        const u64 u = from[j], v = from[j + gap];
        x[j] = subtract_if(u + v, twice);
        x[j + gap] = multiply_lazy(u + twice - v, w, q);
      }
    }
  }
  for (std::size_t j = 0; j < gap; ++j) {
    const u64 u = source[j], v = source[j + gap];
    a[j] = multiply(u + v, tables.inverse_degree, q);
    a[j + gap] = multiply(u + twice - v, tables.inverse_degree_last, q);
  }
}

void add(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i) out[i] = subtract_if(a[i] + b[i], m.value);
}

void subtract(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i) out[i] = subtract_if(a[i] + m.value - b[i], m.value);
}

void multiply_each(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i) out[i] = multiply(a[i], b[i], m);
}

void multiply_add(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = reduce(static_cast<u128>(a[i]) * b[i] + out[i], m);
}

void scale(u64* out, const u64* a, std::size_t n, const Factor& w, const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i) out[i] = multiply(a[i], w, m.value);
}

void spread(u64* out, const u64* a, std::size_t n, u64 bias, const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i) out[i] = reduce(a[i], m) + bias;
}

void spread2(u64* out, const u64* a, const u64* b, std::size_t n, const Factor& w, u64 bias,
             const Modulus& m) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = reduce(a[i], m) + multiply(b[i], w, m.value) + bias;
}

void close(u64* out, const u64* x, const u64* u, std::size_t n, const Factor& w,
           const u64* addend, const Modulus& m) {
  const u64 q = m.value, twice = 2 * q;
  if (addend == nullptr) {
    for (std::size_t i = 0; i < n; ++i) out[i] = multiply(x[i] + twice - u[i], w, q);
    return;
  }
  for (std::size_t i = 0; i < n; ++i)
    out[i] = subtract_if(multiply(x[i] + twice - u[i], w, q) + addend[i], q);
}

void permute(u64* out, const u64* a, const u64* base, std::size_t n, const Permutation& p,
             const Modulus& m) {
  for (std::size_t block = 0; block < n / 8; ++block) {
    const u64* from = a + p.source[block];
    const auto& lanes = p.lanes[p.pattern[block]];
    u64* to = out + 8 * block;
    if (base == nullptr) {
      for (std::size_t t = 0; t < 8; ++t) to[t] = from[lanes[t]];
    } else {
      for (std::size_t t = 0; t < 8; ++t)
        to[t] = subtract_if(from[lanes[t]] + base[8 * block + t], m.value);
    }
  }
}

template <bool kPermuted>
void inner_(const InnerProduct& p, std::size_t n, const Modulus& m) {
  for (std::size_t block = 0; block < n / 8; ++block) {
    const std::size_t at = 8 * block;
    const std::size_t from = kPermuted ? p.permutation->source[block] : at;
    const u64* lanes =
        kPermuted ? p.permutation->lanes[p.permutation->pattern[block]].data() : nullptr;
    for (std::size_t t = 0; t < 8; ++t) {
      const std::size_t to = at + t, source = from + (kPermuted ? lanes[t] : t);
      u128 sum0 = p.base0 ? p.base0[to] : 0;
      u128 sum1 = p.base1 ? p.base1[to] : 0;
      if (p.shifted0) sum0 += p.shifted0[source];
      for (std::size_t start = 0; start < p.count;) {
        // two of the terms that fit are left for the addends, or for what was reduced before
        const std::size_t end = std::min(p.count, start + kScalarTerms - 2);
        for (std::size_t i = start; i < end; ++i) {
          const u64 digit = p.digits[i][source];
          sum0 += static_cast<u128>(digit) * p.key0[i][to];
          sum1 += static_cast<u128>(digit) * p.key1[i][to];
        }
        sum0 = reduce(sum0, m);
        sum1 = reduce(sum1, m);
        start = end;
      }
      p.out0[to] = static_cast<u64>(sum0);
      p.out1[to] = static_cast<u64>(sum1);
    }
  }
}

void inner(const InnerProduct& p, std::size_t n, const Modulus& m) {
  p.permutation ? inner_<true>(p, n, m) : inner_<false>(p, n, m);
}

void gemm(const Gemm& g, std::size_t n, const Modulus& m) {
  constexpr std::size_t rows_at_once = 4;
  for (std::size_t row = 0; row < g.rows; row += rows_at_once) {
    const std::size_t rows = std::min(g.rows - row, rows_at_once);
    for (std::size_t i = 0; i < n; ++i) {
      u128 sums[rows_at_once] = {};
      for (std::size_t start = 0; start < g.columns;) {
        const std::size_t end = std::min(g.columns, start + kScalarTerms - 1);
        for (std::size_t column = start; column < end; ++column) {
          const u64 x = g.in[column][i];
          for (std::size_t r = 0; r < rows; ++r)
            sums[r] += static_cast<u128>(x) * g.weights[(row + r) * g.columns + column];
        }
        for (std::size_t r = 0; r < rows; ++r) sums[r] = reduce(sums[r], m);
        start = end;
      }
      for (std::size_t r = 0; r < rows; ++r) g.out[row + r][i] = static_cast<u64>(sums[r]);
    }
  }
}

}  // namespace

const Kernels& scalar_kernels() {
  static const Kernels kernels{"scalar", kMaxPrimeBits, ntt,   inverse_ntt, add,    subtract, multiply_each,
                               multiply_add, scale,     spread, spread2,     close, permute,  inner, gemm, output_nodes<u64>};
  return kernels;
}

}  // namespace tg

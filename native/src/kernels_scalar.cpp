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

// Rows of polynomials lie a power of two apart and fall into one set of the first-level cache. So eight
// values of each are copied side by side before they are used eight times.
constexpr std::size_t kTile = 32;
using Lines = std::array<std::array<u64, 8>, kTile>;

void inner(const InnerProduct& p, std::size_t n, const Modulus& m) {
  constexpr std::array<u64, 8> straight{0, 1, 2, 3, 4, 5, 6, 7};
  Lines digit, key0, key1;
  for (std::size_t block = 0; block < n / 8; ++block) {
    const std::size_t at = 8 * block;
    const std::size_t from = p.permutation ? p.permutation->source[block] : at;
    const auto& lanes =
        p.permutation ? p.permutation->lanes[p.permutation->pattern[block]] : straight;
    u128 sum0[8], sum1[8];
    for (std::size_t t = 0; t < 8; ++t) {
      sum0[t] = p.base0 ? p.base0[at + t] : 0;
      sum1[t] = p.base1 ? p.base1[at + t] : 0;
      if (p.shifted0) sum0[t] += p.shifted0[from + lanes[t]];
    }
    std::size_t terms = 2;  // in units of (q - 1)^2: both addends are less than one each
    for (std::size_t start = 0; start < p.count; start += kTile, terms += kTile) {
      const std::size_t size = std::min(p.count - start, kTile);
      if (terms + size > kScalarTerms) {
        for (std::size_t t = 0; t < 8; ++t) {
          sum0[t] = reduce(sum0[t], m);
          sum1[t] = reduce(sum1[t], m);
        }
        terms = 1;
      }
      for (std::size_t i = 0; i < size; ++i) {
        for (std::size_t t = 0; t < 8; ++t) digit[i][t] = p.digits[start + i][from + lanes[t]];
        std::copy_n(p.key0[start + i] + at, 8, key0[i].begin());
        std::copy_n(p.key1[start + i] + at, 8, key1[i].begin());
      }
      for (std::size_t t = 0; t < 8; ++t) {
        u128 first = sum0[t], second = sum1[t];
        for (std::size_t i = 0; i < size; ++i) {
          first += static_cast<u128>(digit[i][t]) * key0[i][t];
          second += static_cast<u128>(digit[i][t]) * key1[i][t];
        }
        sum0[t] = first;
        sum1[t] = second;
      }
    }
    for (std::size_t t = 0; t < 8; ++t) {
      p.out0[at + t] = reduce(sum0[t], m);
      p.out1[at + t] = reduce(sum1[t], m);
    }
  }
}

void gemm(const Gemm& g, std::size_t n, const Modulus& m) {
  constexpr std::size_t rows_at_once = 8;
  Lines x;
  for (std::size_t row = 0; row < g.rows; row += rows_at_once) {
    const std::size_t rows = std::min(g.rows - row, rows_at_once);
    for (std::size_t at = 0; at < n; at += 8) {
      u128 sums[rows_at_once][8] = {};
      std::size_t terms = 0;
      for (std::size_t start = 0; start < g.columns; start += kTile, terms += kTile) {
        const std::size_t size = std::min(g.columns - start, kTile);
        if (terms + size > kScalarTerms) {
          for (auto& line : sums)
            for (u128& sum : line) sum = reduce(sum, m);
          terms = 1;
        }
        for (std::size_t i = 0; i < size; ++i) std::copy_n(g.in[start + i] + at, 8, x[i].begin());
        for (std::size_t r = 0; r < rows; ++r) {
          const u64* weights = g.weights + (row + r) * g.columns + start;
          for (std::size_t t = 0; t < 8; ++t) {
            u128 sum = sums[r][t];
            for (std::size_t i = 0; i < size; ++i) sum += static_cast<u128>(x[i][t]) * weights[i];
            sums[r][t] = sum;
          }
        }
      }
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t t = 0; t < 8; ++t) g.out[row + r][at + t] = reduce(sums[r][t], m);
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

// Portable kernels: 64-bit words, 128-bit products.
#include <algorithm>

#include "kernels.hpp"

namespace tg {

namespace {

#include "blake2.hpp"

// Harvey's butterflies. Forward, values below 4q stay so; backward, values below 2q stay so.
inline void forward(u64& x, u64& y, const Factor& w, u64 q) {
  const u64 u = subtract_if(x, 2 * q), v = multiply_lazy(y, w, q);
  x = u + v;
  y = u + 2 * q - v;
}

inline void backward(u64& x, u64& y, const Factor& w, u64 q) {
  const u64 u = x, v = y;
  x = subtract_if(u + v, 2 * q);
  y = multiply_lazy(u + 2 * q - v, w, q);
}

inline Factor root(const NttTables::Direction& d, std::size_t i) {
  return {d.root[i], d.quotient64[i], 0};
}

u64 below(u64 x, u64 q) { return subtract_if(subtract_if(x, 2 * q), q); }

// Two stages at once: four values are read and written once for four butterflies.
template <bool kLast>
void forward_pair(u64* a, const u64* source, std::size_t blocks, std::size_t gap,
                  const NttTables& tables) {
  const u64 q = tables.modulus.value;
  for (std::size_t i = 0; i < blocks; ++i) {
    const Factor w = root(tables.forward, blocks + i);
    const Factor low = root(tables.forward, 2 * (blocks + i));
    const Factor high = root(tables.forward, 2 * (blocks + i) + 1);
    const u64* from = source + 4 * i * gap;
    u64* to = a + 4 * i * gap;
    for (std::size_t j = 0; j < gap; ++j) {
      u64 x0 = from[j], x1 = from[j + gap], x2 = from[j + 2 * gap], x3 = from[j + 3 * gap];
      forward(x0, x2, w, q);
      forward(x1, x3, w, q);
      forward(x0, x1, low, q);
      forward(x2, x3, high, q);
      to[j] = kLast ? below(x0, q) : x0;
      to[j + gap] = kLast ? below(x1, q) : x1;
      to[j + 2 * gap] = kLast ? below(x2, q) : x2;
      to[j + 3 * gap] = kLast ? below(x3, q) : x3;
    }
  }
}

void ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const u64 q = tables.modulus.value;
  std::size_t blocks = 1, gap = n / 4;
  if (tables.log_degree % 2 != 0) {
    const Factor w = root(tables.forward, 1);
    for (std::size_t j = 0; j < n / 2; ++j) {
      u64 x = source[j], y = source[j + n / 2];
      forward(x, y, w, q);
      a[j] = x;
      a[j + n / 2] = y;
    }
    source = a;
    blocks = 2;
    gap /= 2;
  }
  for (; gap > 1; blocks *= 4, gap /= 4, source = a)
    forward_pair<false>(a, source, blocks, gap, tables);
  forward_pair<true>(a, source, blocks, gap, tables);
}

void inverse_ntt(u64* a, const u64* source, const NttTables& tables) {
  const std::size_t n = tables.degree;
  const u64 q = tables.modulus.value;
  const auto& d = tables.backward;
  std::size_t blocks = n / 2, gap = 1;
  for (; blocks > 2; blocks /= 4, gap *= 4, source = a) {
    for (std::size_t i = 0; i < blocks / 2; ++i) {
      const Factor low = root(d, blocks + 2 * i), high = root(d, blocks + 2 * i + 1);
      const Factor w = root(d, blocks / 2 + i);
      const u64* from = source + 4 * i * gap;
      u64* to = a + 4 * i * gap;
      for (std::size_t j = 0; j < gap; ++j) {
        u64 x0 = from[j], x1 = from[j + gap], x2 = from[j + 2 * gap], x3 = from[j + 3 * gap];
        backward(x0, x1, low, q);
        backward(x2, x3, high, q);
        backward(x0, x2, w, q);
        backward(x1, x3, w, q);
        to[j] = x0;
        to[j + gap] = x1;
        to[j + 2 * gap] = x2;
        to[j + 3 * gap] = x3;
      }
    }
  }
  if (blocks == 2) {
    for (std::size_t i = 0; i < 2; ++i) {
      const Factor w = root(d, 2 + i);
      const u64* from = source + 2 * i * gap;
      u64* to = a + 2 * i * gap;
      for (std::size_t j = 0; j < gap; ++j) {
        u64 x = from[j], y = from[j + gap];
        backward(x, y, w, q);
        to[j] = x;
        to[j + gap] = y;
      }
    }
    source = a;
  }
  for (std::size_t j = 0; j < n / 2; ++j) {
    const u64 u = source[j], v = source[j + n / 2];
    a[j] = multiply(u + v, tables.inverse_degree, q);
    a[j + n / 2] = multiply(u + 2 * q - v, tables.inverse_degree_last, q);
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

// The inner loops, one table of functions per instruction set. All of them give the same residues.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "arithmetic.hpp"

namespace tg {

// Powers of the minimal primitive 2N-th root of unity, bit-reversed, as in SEAL.
struct NttTables {
  struct Direction {
    std::vector<u64> root, quotient64, quotient52;
    std::vector<double> real, ratio;  // w, centred, and w / q
  };
  std::size_t degree = 0;
  unsigned log_degree = 0;
  Modulus modulus;
  Direction forward, backward;
  Factor inverse_degree;       // N^-1
  Factor inverse_degree_last;  // N^-1 times the last stage's root
};

// x -> x^element on polynomials in NTT form: eight aligned values come from eight aligned values,
// because the top bits of the exponent (the low bits of the position) are only turned.
struct Permutation {
  u64 element = 0;
  std::vector<std::uint32_t> source;   // by block of eight: where its values start
  std::vector<std::uint8_t> pattern;   // by block of eight: which lanes
  std::array<std::array<u64, 8>, 8> lanes{};
};

// out0 = base0 + shifted0 o perm + sum (digit_i o perm) * key0_i, and out1 without `shifted`.
// `base0`, `base1`, `shifted0` and `perm` may be null. An output may be its own base.
struct InnerProduct {
  u64 *out0, *out1;
  const u64* const* digits;
  const u64* const* key0;
  const u64* const* key1;
  std::size_t count;
  const Permutation* permutation;
  const u64 *base0, *base1, *shifted0;
};

// out[r] = sum over c of weights[r * columns + c] * in[c]
struct Gemm {
  u64* const* out;
  const u64* const* in;
  const u64* weights;
  std::size_t rows, columns;
};

struct Kernels {
  const char* name;
  unsigned max_bits;

  // source < 4q and < 2^62 (vector kernels: 2^52); destination < q; they may be the same.
  void (*ntt)(u64* destination, const u64* source, const NttTables&);
  // source < q; destination < q; they may be the same.
  void (*inverse_ntt)(u64* destination, const u64* source, const NttTables&);

  // All operands < q, all results < q, unless said otherwise. Operands may alias exactly.
  void (*add)(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus&);
  void (*subtract)(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus&);
  void (*multiply)(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus&);
  void (*multiply_add)(u64* out, const u64* a, const u64* b, std::size_t n, const Modulus&);
  void (*scale)(u64* out, const u64* a, std::size_t n, const Factor&, const Modulus&);
  // out = (a mod q) + bias, below 2q; a is any residue of another prime that the kernel admits.
  void (*spread)(u64* out, const u64* a, std::size_t n, u64 bias, const Modulus&);
  // out = (a mod q) + (b mod q) * w + bias, below 4q.
  void (*spread2)(u64* out, const u64* a, const u64* b, std::size_t n, const Factor& w, u64 bias,
                  const Modulus&);
  // out = (x - u) * w + addend, with u < 2q; `addend` may be null.
  void (*close)(u64* out, const u64* x, const u64* u, std::size_t n, const Factor& w,
                const u64* addend, const Modulus&);
  void (*permute)(u64* out, const u64* a, const u64* base, std::size_t n, const Permutation&,
                  const Modulus&);
  void (*inner)(const InnerProduct&, std::size_t n, const Modulus&);
  void (*gemm)(const Gemm&, std::size_t n, const Modulus&);

  // BLAKE2X's first `count` nodes of 64 bytes of an output of `bytes`; a multiple of eight nodes.
  void (*output_nodes)(u64* out, const u64* root, u64 bytes, std::size_t count);
};

const Kernels& scalar_kernels();
const Kernels* avx2_kernels();  // null where the CPU or the build has no AVX2 and FMA
const Kernels* ifma_kernels();  // null where the CPU or the build has no AVX512-IFMA

// "auto" is the fastest; a name that this CPU cannot run throws std::invalid_argument.
const Kernels& choose_kernels(const std::string& name);
std::vector<std::string> available_kernels();

// Throws std::invalid_argument unless the prime is 1 modulo 2 * degree.
NttTables make_tables(std::size_t degree, const Modulus&);
Permutation make_permutation(std::size_t degree, u64 element);

}  // namespace tg

// Modular arithmetic for primes of at most 60 bits. Bounds are proven in docs/native-runtime.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tg {

using u64 = std::uint64_t;
using u128 = unsigned __int128;

constexpr unsigned kMaxPrimeBits = 60;   // 4q and sums of 256 products stay in 64 and 128 bits
constexpr unsigned kMaxVectorBits = 50;  // 4q stays below 2^52
constexpr std::size_t kScalarTerms = 256;    // 256 * (2^60 - 1)^2 < 2^128
constexpr std::size_t kVectorTerms = 4095;   // 4095 * (2^52 - 1) < 2^64

// A constant factor w < q with its Shoup quotients floor(w * 2^64 / q) and floor(w * 2^52 / q).
struct Factor {
  u64 value = 0;
  u64 quotient64 = 0;
  u64 quotient52 = 0;
};

struct Modulus {
  u64 value = 0;
  u64 ratio = 0;                       // floor(2^64 / q)
  u64 one52 = 0;                       // floor(2^52 / q)
  Factor power52, power64, power104;   // powers of two mod q
  unsigned bits = 0;
};

// a - q where a >= q, without a branch: otherwise the difference wraps and is the larger one
inline u64 subtract_if(u64 a, u64 q) {
  const u64 d = a - q;
  return d < a ? d : a;
}

// a * w mod q, below 2q, for any a < 2^64.
inline u64 multiply_lazy(u64 a, const Factor& w, u64 q) {
  return a * w.value - static_cast<u64>((static_cast<u128>(a) * w.quotient64) >> 64) * q;
}

// x mod q, below 2q, for any x < 2^64.
inline u64 reduce_lazy(u64 x, const Modulus& m) {
  return x - static_cast<u64>((static_cast<u128>(x) * m.ratio) >> 64) * m.value;
}

inline u64 reduce(u64 x, const Modulus& m) { return subtract_if(reduce_lazy(x, m), m.value); }

// x mod q for any x < 2^128: high * (2^64 mod q) + low.
inline u64 reduce(u128 x, const Modulus& m) {
  const u64 sum = multiply_lazy(static_cast<u64>(x >> 64), m.power64, m.value) +
                  reduce_lazy(static_cast<u64>(x), m);  // below 4q
  return subtract_if(subtract_if(sum, 2 * m.value), m.value);
}

inline u64 multiply(u64 a, u64 b, const Modulus& m) { return reduce(static_cast<u128>(a) * b, m); }

inline u64 multiply(u64 a, const Factor& w, u64 q) {
  return subtract_if(multiply_lazy(a, w, q), q);
}

inline Factor make_factor(u64 w, u64 q) {
  return {w, static_cast<u64>((static_cast<u128>(w) << 64) / q),
          static_cast<u64>((static_cast<u128>(w) << 52) / q)};
}

// The representative between -q / 2 and q / 2; exact below 2^53.
inline double centred(u64 w, u64 q) {
  return w > q / 2 ? -static_cast<double>(q - w) : static_cast<double>(w);
}

u64 power(u64 base, u64 exponent, const Modulus& m);
u64 inverse(u64 a, const Modulus& m);  // a^(q - 2)
bool is_prime(u64 n);

// Throws std::invalid_argument unless q is a prime of 20 to 60 bits.
Modulus make_modulus(u64 q);

inline std::size_t reverse_bits(std::size_t value, unsigned bits) {
  std::size_t result = 0;
  for (unsigned i = 0; i < bits; ++i, value >>= 1) result = result << 1 | (value & 1);
  return result;
}

}  // namespace tg

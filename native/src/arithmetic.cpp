#include "arithmetic.hpp"

#include <bit>
#include <stdexcept>
#include <string>

namespace tg {

u64 power(u64 base, u64 exponent, const Modulus& m) {
  u64 result = 1;
  for (; exponent; exponent >>= 1, base = multiply(base, base, m))
    if (exponent & 1) result = multiply(result, base, m);
  return result;
}

u64 inverse(u64 a, const Modulus& m) { return power(a, m.value - 2, m); }

// Miller-Rabin with the first twelve primes as witnesses, which decides every n < 2^64.
bool is_prime(u64 n) {
  constexpr u64 witnesses[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
  for (const u64 p : witnesses)
    if (n % p == 0) return n == p;
  if (n < 2) return false;
  const int twos = std::countr_zero(n - 1);
  const auto square = [n](u64 x) { return static_cast<u64>(static_cast<u128>(x) * x % n); };
  for (const u64 witness : witnesses) {
    u64 x = 1;
    for (u64 e = (n - 1) >> twos, b = witness; e; e >>= 1, b = square(b))
      if (e & 1) x = static_cast<u64>(static_cast<u128>(x) * b % n);
    if (x == 1 || x == n - 1) continue;
    bool composite = true;
    for (int i = 1; i < twos && composite; ++i) composite = (x = square(x)) != n - 1;
    if (composite) return false;
  }
  return true;
}

Modulus make_modulus(u64 q) {
  const unsigned bits = static_cast<unsigned>(std::bit_width(q));
  if (bits < 20 || bits > kMaxPrimeBits || !is_prime(q))
    throw std::invalid_argument("a modulus is a prime of 20 to 60 bits, not " + std::to_string(q));
  Modulus m;
  m.value = q;
  m.bits = bits;
  m.ratio = ~u64{0} / q;  // 2^64 is no multiple of an odd q
  m.one52 = (u64{1} << 52) / q;
  m.power52 = make_factor((u64{1} << 52) % q, q);
  m.power64 = make_factor(static_cast<u64>((static_cast<u128>(1) << 64) % q), q);
  m.power104 = make_factor(static_cast<u64>((static_cast<u128>(1) << 104) % q), q);
  return m;
}

}  // namespace tg

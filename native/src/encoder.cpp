#include "encoder.hpp"

#include <bit>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace tg {

namespace {

std::complex<double> turn(std::size_t numerator, std::size_t denominator) {
  const long double angle = -2.0L * std::numbers::pi_v<long double> *
                            static_cast<long double>(numerator) /
                            static_cast<long double>(denominator);
  return {static_cast<double>(std::cos(angle)), static_cast<double>(std::sin(angle))};
}

// |x| mod q, negated for x < 0. x is an integer of any size below 2^1023, exact as a double.
u64 residue(double x, const Modulus& m) {
  const double magnitude = std::fabs(x);
  u64 r;
  if (magnitude < 9.0e18) {
    r = reduce(static_cast<u64>(magnitude), m);
  } else {
    int exponent = 0;
    const double mantissa = std::frexp(magnitude, &exponent);  // mantissa * 2^53 is an integer
    r = multiply(reduce(static_cast<u64>(std::ldexp(mantissa, 53)), m),
                 power(2, static_cast<u64>(exponent - 53), m), m);
  }
  return std::signbit(x) && r ? m.value - r : r;
}

}  // namespace

Encoder::Encoder(const Ring& ring)
    : degree_(ring.degree()), log_degree_(static_cast<unsigned>(std::countr_zero(degree_))) {
  for (std::size_t k = 0; k < degree_ / 2; ++k) turns_.push_back(turn(k, degree_));
  for (std::size_t k = 0; k < degree_; ++k) twist_.push_back(turn(k, 2 * degree_));
  // slot i is the value at zeta^(3^i), and its conjugate at zeta^(-3^i); zeta^(2t + 1) is input t
  std::size_t exponent = 1;
  for (std::size_t i = 0; i < degree_ / 2; ++i, exponent = exponent * 3 % (2 * degree_)) {
    place_.push_back(reverse_bits(exponent / 2, log_degree_));
    conjugate_.push_back(reverse_bits((2 * degree_ - exponent) / 2, log_degree_));
  }
}

// The discrete Fourier transform of bit-reversed values.
void Encoder::transform(std::vector<std::complex<double>>& values) const {
  for (std::size_t gap = 1; gap < degree_; gap <<= 1) {
    const std::size_t step = degree_ / (2 * gap);
    for (std::size_t start = 0; start < degree_; start += 2 * gap) {
      for (std::size_t j = 0; j < gap; ++j) {
        const std::complex<double> w = turns_[j * step];
        std::complex<double>&x = values[start + j], &y = values[start + j + gap];
        const std::complex<double> v{y.real() * w.real() - y.imag() * w.imag(),
                                     y.real() * w.imag() + y.imag() * w.real()};
        y = x - v;
        x += v;
      }
    }
  }
}

Plaintext Encoder::encode(const RingPtr& ring, std::span<const double> slots, std::size_t level,
                          double scale, bool extended) const {
  if (slots.size() != degree_ / 2)
    throw std::invalid_argument("there is one value for each slot");
  if (level < 1 || level > ring->levels())
    throw std::invalid_argument("there is no such level");
  if (!(scale > 0) || !std::isfinite(scale)) throw std::invalid_argument("a scale is positive");
  std::vector<std::complex<double>> values(degree_);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!std::isfinite(slots[i])) throw std::invalid_argument("a value is not finite");
    values[place_[i]] = values[conjugate_[i]] = slots[i];
  }
  transform(values);
  std::vector<double> coefficients(degree_);
  const double fix = scale / static_cast<double>(degree_);
  double largest = 0;
  for (std::size_t k = 0; k < degree_; ++k) {
    const double real =
        values[k].real() * twist_[k].real() - values[k].imag() * twist_[k].imag();
    coefficients[k] = std::round(real * fix);
    largest = std::fmax(largest, std::fabs(coefficients[k]));
  }
  double room = -2;  // a bit for the sign and one to spare, as SEAL leaves
  for (std::size_t k = 0; k < level; ++k)
    room += std::log2(static_cast<double>(ring->modulus(k).value));
  if (!std::isfinite(largest) || (largest > 0 && std::log2(largest) > room))
    throw std::invalid_argument("the values do not fit the primes at this scale");
  const std::size_t places = level + extended;
  Plaintext out{ring, level, extended, ring->buffer(places)};
  ring->parallel(places, [&](std::size_t k) {
    const std::size_t place = k == level ? ring->special() : k;
    u64* to = out.data.data() + k * degree_;
    for (std::size_t i = 0; i < degree_; ++i)
      to[i] = residue(coefficients[i], ring->modulus(place));
    ring->kernels(place).ntt(to, to, ring->tables(place));
  });
  return out;
}

}  // namespace tg

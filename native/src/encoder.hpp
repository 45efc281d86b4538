// CKKS encoding of real slots: the inverse canonical embedding, scaled, rounded, in NTT form.
#pragma once

#include <complex>
#include <span>

#include "objects.hpp"

namespace tg {

class Encoder {
 public:
  explicit Encoder(const Ring& ring);

  // `slots`: N / 2 finite values. Throws std::invalid_argument if they do not fit the primes.
  Plaintext encode(const RingPtr&, std::span<const double> slots, std::size_t level, double scale,
                   bool extended) const;

 private:
  void transform(std::vector<std::complex<double>>& values) const;

  std::size_t degree_;
  unsigned log_degree_;
  std::vector<std::complex<double>> turns_;    // exp(-2 pi i k / N), k < N / 2
  std::vector<std::complex<double>> twist_;    // exp(-pi i k / N), k < N
  std::vector<std::size_t> place_, conjugate_;  // by slot: where its value goes
};

}  // namespace tg

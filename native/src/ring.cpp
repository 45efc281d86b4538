#include "ring.hpp"

#include <bit>
#include <mutex>
#include <set>
#include <stdexcept>

namespace tg {

namespace {

constexpr std::size_t kPoolWords = std::size_t{1} << 23;  // 64 MiB of buffers are kept at most

unsigned check_threads(unsigned threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("the number of threads is 1 to 256");
  return threads;
}

void add_half(u64* out, const u64* x, std::size_t n, const Modulus& m) {
  const u64 half = m.value >> 1;
  for (std::size_t i = 0; i < n; ++i) out[i] = subtract_if(x[i] + half, m.value);
}

// -half mod q, where half = (divisor - 1) / 2: takes the rounding's offset out again
u64 unhalf(const Modulus& divisor, const Modulus& m) {
  const u64 half = (divisor.value >> 1) % m.value;
  return half == 0 ? 0 : m.value - half;
}

}  // namespace

Ring::Ring(std::size_t degree, const std::vector<u64>& primes, unsigned threads,
           const std::string& kernels)
    : degree_(degree),
      chosen_(&choose_kernels(kernels)),
      pool_(std::make_shared<Pool>(kPoolWords)),
      team_(check_threads(threads)) {
  if (!std::has_single_bit(degree) || degree < kMinDegree || degree > kMaxDegree)
    throw std::invalid_argument("the ring degree is a power of two from 64 to 65536");
  if (primes.size() < 2 || primes.size() > kMaxPrimes ||
      std::set<u64>(primes.begin(), primes.end()).size() != primes.size())
    throw std::invalid_argument("there are 2 to 64 distinct primes");
  for (const u64 prime : primes) {
    const Modulus m = make_modulus(prime);
    tables_.push_back(make_tables(degree, m));
    kernels_.push_back(m.bits <= chosen_->max_bits ? chosen_ : &scalar_kernels());
  }
  const u64 p = modulus(special()).value;
  for (std::size_t k = 0; k < levels(); ++k) {
    const Modulus& m = modulus(k);
    special_.push_back(make_factor(p % m.value, m.value));
    special_inverse_.push_back(make_factor(inverse(p % m.value, m), m.value));
  }
  last_inverse_.resize(levels() + 1);
  both_inverse_.resize(levels() + 1);
  for (std::size_t level = 2; level <= levels(); ++level) {
    for (std::size_t k = 0; k + 1 < level; ++k) {
      const Modulus& m = modulus(k);
      const u64 last = inverse(modulus(level - 1).value % m.value, m);
      last_inverse_[level].push_back(make_factor(last, m.value));
      both_inverse_[level].push_back(
          make_factor(multiply(last, special_inverse_[k].value, m), m.value));
    }
  }
}

const Permutation& Ring::permutation(u64 element) const {
  {
    const std::shared_lock lock(mutex_);
    const auto found = permutations_.find(element);
    if (found != permutations_.end()) return *found->second;
  }
  auto made = std::make_unique<Permutation>(make_permutation(degree_, element));
  const std::unique_lock lock(mutex_);
  return *permutations_.try_emplace(element, std::move(made)).first->second;
}

void Ring::spread(u64* out, const u64* x, std::size_t from, std::size_t to, u64 bias) const {
  const Kernels& k = modulus(from).bits <= kernels(to).max_bits ? kernels(to) : scalar_kernels();
  k.spread(out, x, degree_, bias, modulus(to));
}

void Ring::transform(u64* out, const u64* x, std::size_t from, std::size_t to) const {
  if (modulus(from).value <= modulus(to).value) {
    kernels(to).ntt(out, x, tables(to));
    return;
  }
  spread(out, x, from, to, 0);
  kernels(to).ntt(out, out, tables(to));
}

void Ring::divide_by_special(u64* out, const u64* x, std::size_t level, const u64* addend) const {
  const std::size_t n = degree_;
  const Modulus& p = modulus(special());
  Buffer top = buffer(1);
  kernels(special()).inverse_ntt(top.data(), x + level * n, tables(special()));
  add_half(top.data(), top.data(), n, p);
  parallel(level, [&](std::size_t k) {
    Buffer u = buffer(1);
    spread(u.data(), top.data(), special(), k, unhalf(p, modulus(k)));
    kernels(k).ntt(u.data(), u.data(), tables(k));
    kernels(k).close(out + k * n, x + k * n, u.data(), n, special_inverse_[k],
                     addend ? addend + k * n : nullptr, modulus(k));
  });
}

void Ring::divide_by_last(u64* out, const u64* x, std::size_t level) const {
  const std::size_t n = degree_, last = level - 1;
  Buffer top = buffer(1);
  kernels(last).inverse_ntt(top.data(), x + last * n, tables(last));
  add_half(top.data(), top.data(), n, modulus(last));
  parallel(last, [&](std::size_t k) {
    Buffer u = buffer(1);
    spread(u.data(), top.data(), last, k, unhalf(modulus(last), modulus(k)));
    kernels(k).ntt(u.data(), u.data(), tables(k));
    kernels(k).close(out + k * n, x + k * n, u.data(), n, last_inverse_[level][k], nullptr,
                     modulus(k));
  });
}

// With a = [x]_P and s = [(x - a) / P]_q_last, both centred, the result is
// (x - a - P s) / (P q_last): the correction a + P s is formed on coefficients, one NTT per prime.
void Ring::divide_by_both(u64* out, const u64* x, std::size_t level) const {
  const std::size_t n = degree_, last = level - 1;
  const Modulus &p = modulus(special()), &q = modulus(last);
  Buffer top = buffer(1), next = buffer(1), u = buffer(1);
  kernels(special()).inverse_ntt(top.data(), x + level * n, tables(special()));
  add_half(top.data(), top.data(), n, p);
  kernels(last).inverse_ntt(next.data(), x + last * n, tables(last));
  spread(u.data(), top.data(), special(), last, unhalf(p, q));
  kernels(last).close(next.data(), next.data(), u.data(), n, special_inverse_[last], nullptr, q);
  add_half(next.data(), next.data(), n, q);
  parallel(last, [&](std::size_t k) {
    const Modulus& m = modulus(k);
    Buffer both = buffer(1);
    const u64 bias = subtract_if(
        unhalf(p, m) + multiply(unhalf(q, m), special_[k], m.value), m.value);
    const unsigned widest = p.bits > q.bits ? p.bits : q.bits;
    const Kernels& kernel = widest <= kernels(k).max_bits ? kernels(k) : scalar_kernels();
    kernel.spread2(both.data(), top.data(), next.data(), n, special_[k], bias, m);
    kernels(k).ntt(both.data(), both.data(), tables(k));
    kernels(k).close(out + k * n, x + k * n, both.data(), n, both_inverse_[level][k], nullptr, m);
  });
}

void Ring::multiply_by_special(u64* out, const u64* x, std::size_t level) const {
  for (std::size_t k = 0; k < level; ++k)
    kernels(k).scale(out + k * degree_, x + k * degree_, degree_, special_[k], modulus(k));
}

}  // namespace tg

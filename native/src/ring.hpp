// One set of CKKS parameters: primes, tables, constants, kernels and threads. Immutable when made.
#pragma once

#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace tg {

constexpr std::size_t kMinDegree = 64, kMaxDegree = 65536;
constexpr std::size_t kMaxPrimes = 64;
constexpr unsigned kMaxThreads = 256;

class Ring {
 public:
  // `primes`: the data primes in chain order, then the special prime.
  Ring(std::size_t degree, const std::vector<u64>& primes, unsigned threads,
       const std::string& kernels);

  std::size_t degree() const { return degree_; }
  std::size_t levels() const { return tables_.size() - 1; }  // of a fresh ciphertext
  std::size_t special() const { return tables_.size() - 1; }  // the special prime's place
  const Modulus& modulus(std::size_t place) const { return tables_[place].modulus; }
  const NttTables& tables(std::size_t place) const { return tables_[place]; }
  const Kernels& kernels(std::size_t place) const { return *kernels_[place]; }
  const Kernels& fastest() const { return *chosen_; }
  Buffer buffer(std::size_t polynomials) const { return {pool_, polynomials * degree_}; }
  void parallel(std::size_t count, const std::function<void(std::size_t)>& work) const {
    team_.run(count, work);
  }
  const Permutation& permutation(u64 element) const;

  // x mod q_to (+ bias), for residues x of q_from.
  void spread(u64* out, const u64* x, std::size_t from, std::size_t to, u64 bias) const;
  // NTT mod q_to of residues of q_from.
  void transform(u64* out, const u64* x, std::size_t from, std::size_t to) const;

  // All of these take and give polynomials in NTT form, one array of N words for each prime.
  // out = addend + round(x / P): `x` has `level` data primes and then the special one.
  void divide_by_special(u64* out, const u64* x, std::size_t level, const u64* addend) const;
  // out = round(x / q_last), with one prime less, exactly as SEAL rounds.
  void divide_by_last(u64* out, const u64* x, std::size_t level) const;
  // The two in one: round(round(x / P) / q_last).
  void divide_by_both(u64* out, const u64* x, std::size_t level) const;
  // out = P * x over the data primes; the special residue, which is 0, is not written.
  void multiply_by_special(u64* out, const u64* x, std::size_t level) const;

 private:
  std::size_t degree_;
  std::vector<NttTables> tables_;
  const Kernels* chosen_;
  std::vector<const Kernels*> kernels_;
  std::vector<Factor> special_, special_inverse_;       // P and P^-1 mod q_k
  std::vector<std::vector<Factor>> last_inverse_;       // [level][k]: q_{level-1}^-1 mod q_k
  std::vector<std::vector<Factor>> both_inverse_;       // [level][k]: (P q_{level-1})^-1 mod q_k
  std::shared_ptr<Pool> pool_;
  mutable Team team_;
  mutable std::shared_mutex mutex_;
  mutable std::map<u64, std::unique_ptr<Permutation>> permutations_;
};

}  // namespace tg

// The self-test: every kernel against plain arithmetic at the limits of its operands, and every operation
// once. Built with AddressSanitizer and UndefinedBehaviorSanitizer by `make sanitize`. Ends with 0 or aborts.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>

#include "encoder.hpp"
#include "evaluator.hpp"
#include "expand.hpp"
#include "switching.hpp"

namespace {

using namespace tg;
using Words = std::vector<u64>;

void check(bool holds, const char* what, const char* kernel = "") {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s %s\n", what, kernel);
  std::abort();
}

u64 prime_below(u64 limit, std::size_t degree) {
  u64 candidate = (limit - 1) / (2 * degree) * (2 * degree) + 1;
  if (candidate >= limit) candidate -= 2 * degree;
  while (!is_prime(candidate)) candidate -= 2 * degree;
  return candidate;
}

// Worst cases first, then noise.
Words operand(std::size_t n, u64 largest, unsigned kind, std::mt19937_64& random) {
  Words x(n);
  for (std::size_t i = 0; i < n; ++i) {
    if (kind == 0) x[i] = largest;
    if (kind == 1) x[i] = i % 2 ? largest : 0;
    if (kind == 2) x[i] = i == 0 ? largest : 0;
    if (kind >= 3) x[i] = random() % (largest + 1);
  }
  return x;
}
constexpr unsigned kKinds = 5;

u64 product(u64 a, u64 b, u64 q) { return static_cast<u64>(static_cast<u128>(a) * b % q); }

// The value of the transform at every position, from its definition: a(psi^(2 brev(i) + 1)).
Words slow_ntt(const Words& a, const NttTables& t) {
  const u64 q = t.modulus.value;
  Words out(t.degree);
  for (std::size_t i = 0; i < t.degree; ++i) {
    const u64 psi = t.forward.root[t.degree / 2];  // psi^1 sits at the reverse of 1
    const u64 point = power(psi, 2 * reverse_bits(i, t.log_degree) + 1, t.modulus);
    u64 sum = 0;
    for (std::size_t j = t.degree; j-- > 0;) sum = (product(sum, point, q) + a[j] % q) % q;
    out[i] = sum;
  }
  return out;
}

void test_transforms(const Kernels& k, const NttTables& t, std::mt19937_64& random) {
  const u64 q = t.modulus.value;
  for (unsigned kind = 0; kind < kKinds; ++kind) {
    for (const u64 largest : {q - 1, 4 * q - 1}) {
      const Words a = operand(t.degree, largest, kind, random);
      Words out(t.degree), back(t.degree), same = a;
      k.ntt(out.data(), a.data(), t);
      check(out == slow_ntt(a, t), "ntt", k.name);
      k.ntt(same.data(), same.data(), t);
      check(out == same, "ntt in place", k.name);
      k.inverse_ntt(back.data(), out.data(), t);
      k.inverse_ntt(same.data(), out.data(), t);
      for (std::size_t i = 0; i < t.degree; ++i)
        check(back[i] == a[i] % q && same[i] == back[i], "inverse ntt", k.name);
    }
    const Words top = operand(t.degree, q - 1, kind, random);
    Words down(t.degree), up(t.degree);
    k.inverse_ntt(down.data(), top.data(), t);
    k.ntt(up.data(), down.data(), t);
    check(up == top, "round trip", k.name);
  }
}

void test_elements(const Kernels& k, const Modulus& m, u64 widest, std::mt19937_64& random) {
  const std::size_t n = 64;
  const u64 q = m.value;
  for (unsigned kind = 0; kind < kKinds * kKinds; ++kind) {
    const Words a = operand(n, q - 1, kind / kKinds, random), b = operand(n, q - 1, kind % kKinds, random);
    const Words wide = operand(n, widest, kind / kKinds, random);
    const Words wide2 = operand(n, widest, kind % kKinds, random);
    const Words twice = operand(n, 2 * q - 1, kind % kKinds, random);
    const Factor w = make_factor(kind % 2 ? q - 1 : random() % q, q);
    const u64 bias = kind % 3 ? q - 1 : random() % q;
    Words out(n), second(n), third(n), fourth = b, fifth(n), sixth(n), seventh(n), eighth(n);
    k.add(out.data(), a.data(), b.data(), n, m);
    k.subtract(second.data(), a.data(), b.data(), n, m);
    k.multiply(third.data(), a.data(), b.data(), n, m);
    k.multiply_add(fourth.data(), a.data(), b.data(), n, m);
    k.scale(fifth.data(), a.data(), n, w, m);
    k.spread(sixth.data(), wide.data(), n, bias, m);
    k.spread2(seventh.data(), wide.data(), wide2.data(), n, w, bias, m);
    k.close(eighth.data(), a.data(), twice.data(), n, w, nullptr, m);
    for (std::size_t i = 0; i < n; ++i) {
      check(out[i] == (a[i] + b[i]) % q, "add", k.name);
      check(second[i] == (a[i] + q - b[i]) % q, "subtract", k.name);
      check(third[i] == product(a[i], b[i], q), "multiply", k.name);
      check(fourth[i] == (product(a[i], b[i], q) + b[i]) % q, "multiply_add", k.name);
      check(fifth[i] == product(a[i], w.value, q), "scale", k.name);
      check(sixth[i] == wide[i] % q + bias, "spread", k.name);
      check(seventh[i] < 4 * q &&
                seventh[i] % q ==
                    (wide[i] % q + product(wide2[i] % q, w.value, q) + bias) % q,
            "spread2", k.name);
      check(eighth[i] == product((a[i] + 2 * q - twice[i]) % q, w.value, q), "close", k.name);
    }
    k.close(eighth.data(), a.data(), twice.data(), n, w, b.data(), m);
    for (std::size_t i = 0; i < n; ++i)
      check(eighth[i] == (product((a[i] + 2 * q - twice[i]) % q, w.value, q) + b[i]) % q,
            "close with addend", k.name);
  }
}

void test_sums(const Kernels& k, const Modulus& m, std::mt19937_64& random) {
  const std::size_t n = 64;
  const u64 q = m.value;
  const Permutation turn = make_permutation(n, 3);
  for (const std::size_t count : {1, 2, 14, 15, 16, 254, 255, 256, 257, 600, 4093, 4094, 4095, 4200}) {
    for (unsigned kind = 0; kind < 4; kind += 3) {
      std::vector<Words> rows;
      for (std::size_t i = 0; i < 8; ++i) rows.push_back(operand(n, q - 1, kind, random));
      std::vector<const u64*> digits, key0, key1;
      for (std::size_t i = 0; i < count; ++i) {
        digits.push_back(rows[i % 5].data());
        key0.push_back(rows[i % 7].data());
        key1.push_back(rows[i % 8].data());
      }
      for (const bool turned : {false, true}) {
        Words out0(n), out1(n);
        const u64 *base = rows[0].data(), *shifted = rows[1].data();
        k.inner({out0.data(), out1.data(), digits.data(), key0.data(), key1.data(), count,
                 turned ? &turn : nullptr, base, base, shifted},
                n, m);
        for (std::size_t i = 0; i < n; ++i) {
          const std::size_t from =
              turned ? turn.source[i / 8] + turn.lanes[turn.pattern[i / 8]][i % 8] : i;
          u64 sum0 = (base[i] + shifted[from]) % q, sum1 = base[i];
          for (std::size_t j = 0; j < count; ++j) {
            sum0 = (sum0 + product(digits[j][from], key0[j][i], q)) % q;
            sum1 = (sum1 + product(digits[j][from], key1[j][i], q)) % q;
          }
          check(out0[i] == sum0 && out1[i] == sum1, "inner", k.name);
        }
      }
      for (const std::size_t lines : {1, 3, 8, 13}) {
        Words weights = operand(lines * count, q - 1, kind, random);
        std::vector<Words> result(lines, Words(n));
        std::vector<u64*> out;
        for (auto& line : result) out.push_back(line.data());
        k.gemm({out.data(), digits.data(), weights.data(), lines, count}, n, m);
        for (std::size_t r = 0; r < lines; ++r) {
          for (std::size_t i = 0; i < n; i += 7) {
            u64 sum = 0;
            for (std::size_t j = 0; j < count; ++j)
              sum = (sum + product(digits[j][i], weights[r * count + j], q)) % q;
            check(result[r][i] == sum, "gemm", k.name);
          }
        }
      }
    }
  }
}

void test_kernels() {
  std::mt19937_64 random(1);
  for (const std::string& name : available_kernels()) {
    const Kernels& k = choose_kernels(name);
    const u64 top = u64{1} << k.max_bits;
    for (const u64 limit : {top, u64{1} << 40, u64{1} << 21}) {
      for (const std::size_t degree : {64, 128, 256}) {
        const NttTables t = make_tables(degree, make_modulus(prime_below(limit, degree)));
        test_transforms(k, t, random);
      }
      const Modulus m = make_modulus(prime_below(limit, 64));
      test_elements(k, m, top - 1, random);
      test_sums(k, m, random);
    }
  }
}

void test_arithmetic() {
  std::mt19937_64 random(2);
  for (const u64 limit : {u64{1} << 60, u64{1} << 50, u64{1} << 21}) {
    const u64 q = prime_below(limit, 64);
    const Modulus m = make_modulus(q);
    for (int i = 0; i < 2000; ++i) {
      const u128 x = i == 0   ? ~static_cast<u128>(0)
                     : i == 1 ? static_cast<u128>(256) * (q - 1) * (q - 1)
                              : static_cast<u128>(random()) << 64 | random();
      check(reduce(x, m) == static_cast<u64>(x % q), "reduce 128");
      const u64 y = i == 0 ? ~u64{0} : random();
      check(reduce(y, m) == y % q, "reduce 64");
      check(multiply(y, make_factor(q - 1, q), q) == product(y % q, q - 1, q), "Shoup");
    }
  }
  check(is_prime(2) && is_prime(0xffffffffffffffc5) && !is_prime(0) && !is_prime(1), "is_prime");
  check(!is_prime(3215031751) && !is_prime(u64{1} << 40), "is_prime of composites");
}

template <typename Call>
void refuses(Call call, const char* what) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return;
  }
  check(false, what);
}

std::shared_ptr<SwitchingKey> noise_key(const RingPtr& ring, std::mt19937_64& random) {
  const std::size_t places = ring->levels() + 1;
  auto key = std::make_shared<SwitchingKey>(
      SwitchingKey{ring, ring->buffer(ring->levels() * 2 * places)});
  for (std::size_t i = 0; i < key->data.size(); ++i)
    key->data.data()[i] = random() % ring->modulus(i / ring->degree() % places).value;
  return key;
}

Ciphertext noise(const RingPtr& ring, std::size_t size, std::size_t level, std::mt19937_64& random) {
  Ciphertext x{ring, size, level, ring->buffer(size * level)};
  for (std::size_t i = 0; i < x.data.size(); ++i)
    x.data.data()[i] = random() % ring->modulus(i / ring->degree() % level).value;
  return x;
}

std::vector<u64> run_all(const std::string& kernels, unsigned threads, const std::vector<u64>& primes) {
  constexpr std::size_t degree = 128;
  const auto ring = std::make_shared<const Ring>(degree, primes, threads, kernels);
  std::mt19937_64 random(3);
  Keys keys;
  for (const u64 element : {3, 9, 27}) keys.rotations[element] = noise_key(ring, random);
  keys.relinearisation = noise_key(ring, random);
  const std::size_t level = ring->levels();
  const Ciphertext a = noise(ring, 2, level, random), b = noise(ring, 2, level, random);
  const Encoder encoder(*ring);
  std::vector<double> slots(degree / 2);
  for (auto& slot : slots) slot = static_cast<double>(random() % 2001) / 1000.0 - 1.0;
  const auto plain = [&](std::size_t at, bool extended) {
    return std::make_shared<const Plaintext>(encoder.encode(ring, slots, at, 0x1p30, extended));
  };
  std::vector<Ciphertext> results;
  const Ciphertext squared = multiply(a, b);
  results.push_back(add(squared, a));
  results.push_back(subtract(a, squared));
  results.push_back(relinearise(squared, keys));
  results.push_back(relinearise_rescale(squared, keys));
  const Ciphertext separate = rescale(results[2]);
  check(std::equal(separate.data.data(), separate.data.data() + separate.data.size(),
                   results[3].data.data()),
        "one division by both primes is two divisions");
  results.push_back(rotate(drop(a, level - 1), 9, keys));
  results.push_back(fold(a, {3, 9, 27}, keys));
  for (Ciphertext& x : rotations(a, {3, 9, 27}, keys)) results.push_back(std::move(x));
  results.push_back(add_plain(multiply_plain(a, *plain(level, false)), *plain(level, false)));
  Transform transform{ring, level, {1, 3}, {1, 9}, {}};
  transform.diagonals = {{plain(level, true), nullptr}, {plain(level, true), plain(level, true)}};
  transform.check();
  results.push_back(transform.apply(b, keys));
  const Transform single{ring, level, {1}, {1}, {{plain(level, false)}}};
  single.check();
  results.push_back(single.apply(b, keys));
  for (auto& x : combine({&a, &b}, {1, -2, INT64_MIN, INT64_MAX, 0, 3}, 3))
    results.push_back(std::move(x));
  std::vector<u64> words;
  for (const Ciphertext& x : results) {
    for (std::size_t i = 0; i < x.data.size(); ++i)
      check(x.data.data()[i] < ring->modulus(i / degree % x.level).value, "results are reduced");
    words.insert(words.end(), x.data.data(), x.data.data() + x.data.size());
  }
  refuses([&] { add(a, drop(b, 1)); }, "two levels are not added");
  refuses([&] { rotate(a, 5, keys); }, "a missing key is refused");
  refuses([&] { rescale(drop(a, 1)); }, "the last prime stays");
  refuses([&] { transform.apply(drop(b, 1), keys); }, "a transform has its level");
  return words;
}

void test_operations() {
  for (const unsigned bits : {50u, 60u}) {
    std::vector<u64> primes;
    for (const unsigned width : {bits, 30u, 40u, 25u, bits}) {
      u64 prime = prime_below(u64{1} << width, 128);
      if (!primes.empty() && prime == primes.front()) prime = prime_below(prime, 128);
      primes.push_back(prime);
    }
    const auto expected = run_all("scalar", 1, primes);
    for (const std::string& name : available_kernels())
      for (const unsigned threads : {1u, 3u})
        check(run_all(name, threads, primes) == expected, "kernels and threads agree", name.c_str());
  }
}

void test_concurrency() {
  const u64 first = prime_below(u64{1} << 40, 128), second = prime_below(first, 128);
  const u64 special = prime_below(u64{1} << 50, 128);
  const auto ring =
      std::make_shared<const Ring>(128, std::vector<u64>{first, second, special}, 3u, "auto");
  std::mt19937_64 random(4);
  Keys keys;
  keys.rotations[3] = noise_key(ring, random);
  const Ciphertext x = noise(ring, 2, 2, random), expected = rotate(x, 3, keys);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const Ciphertext y = rotate(x, 3, keys);
        check(std::equal(y.data.data(), y.data.data() + y.data.size(), expected.data.data()),
              "requests that share a team agree");
      }
    });
}

}  // namespace

int main() {
  test_arithmetic();
  test_kernels();
  test_operations();
  test_concurrency();
  std::printf("all self-tests passed:");
  for (const std::string& name : available_kernels()) std::printf(" %s", name.c_str());
  std::printf("\n");
}

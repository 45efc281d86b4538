#include <bit>
#include <stdexcept>

#include "kernels.hpp"

namespace tg {

namespace {

// The smallest primitive 2N-th root of unity: SEAL's choice, so that NTT forms are the same.
u64 minimal_root(std::size_t degree, const Modulus& m) {
  const u64 order = 2 * static_cast<u64>(degree);
  if ((m.value - 1) % order != 0)
    throw std::invalid_argument("a modulus is not 1 modulo twice the ring degree");
  u64 root = 0;
  for (u64 base = 2; base < 1000 && root == 0; ++base) {  // every second base gives one
    const u64 candidate = power(base, (m.value - 1) / order, m);
    if (power(candidate, degree, m) == m.value - 1) root = candidate;
  }
  if (root == 0) throw std::invalid_argument("a modulus has no root of unity of this order");
  const Factor square = make_factor(multiply(root, root, m), m.value);
  u64 best = root, current = root;
  for (std::size_t i = 1; i < degree; ++i) {
    current = multiply(current, square, m.value);
    if (current < best) best = current;
  }
  return best;
}

NttTables::Direction powers(u64 root, std::size_t degree, const Modulus& m) {
  NttTables::Direction d;
  d.root.resize(degree);
  d.quotient64.resize(degree);
  d.quotient52.resize(degree);
  d.real.resize(degree);
  d.ratio.resize(degree);
  const unsigned bits = static_cast<unsigned>(std::countr_zero(degree));
  u64 current = 1;
  for (std::size_t i = 0; i < degree; ++i) {
    const std::size_t at = reverse_bits(i, bits);
    const Factor f = make_factor(current, m.value);
    d.root[at] = f.value;
    d.quotient64[at] = f.quotient64;
    d.quotient52[at] = f.quotient52;
    d.real[at] = centred(current, m.value);
    d.ratio[at] = d.real[at] / static_cast<double>(m.value);
    current = multiply(current, root, m);
  }
  return d;
}

}  // namespace

NttTables make_tables(std::size_t degree, const Modulus& m) {
  NttTables tables;
  tables.degree = degree;
  tables.log_degree = static_cast<unsigned>(std::countr_zero(degree));
  tables.modulus = m;
  const u64 root = minimal_root(degree, m);
  tables.forward = powers(root, degree, m);
  tables.backward = powers(inverse(root, m), degree, m);
  const u64 scale = inverse(static_cast<u64>(degree), m);
  tables.inverse_degree = make_factor(scale, m.value);
  tables.inverse_degree_last = make_factor(multiply(scale, tables.backward.root[1], m), m.value);
  return tables;
}

Permutation make_permutation(std::size_t degree, u64 element) {
  if (element % 2 == 0 || element >= 2 * degree)
    throw std::invalid_argument("a Galois element is odd and below twice the ring degree");
  Permutation result;
  result.element = element;
  result.source.resize(degree / 8);
  result.pattern.resize(degree / 8);
  const unsigned bits = static_cast<unsigned>(std::countr_zero(degree));
  std::size_t known = 0;
  for (std::size_t block = 0; block < degree / 8; ++block) {
    std::array<u64, 8> lanes{};
    std::size_t start = 0;
    for (std::size_t t = 0; t < 8; ++t) {
      const u64 exponent = 2 * reverse_bits(8 * block + t, bits) + 1;
      const std::size_t from = reverse_bits(((element * exponent) >> 1) & (degree - 1), bits);
      if (t == 0) start = from & ~std::size_t{7};
      if ((from & ~std::size_t{7}) != start) throw std::logic_error("a Galois block is torn");
      lanes[t] = from & 7;
    }
    std::size_t pattern = 0;
    while (pattern < known && result.lanes[pattern] != lanes) ++pattern;
    if (pattern == known) result.lanes.at(known++) = lanes;
    result.source[block] = static_cast<std::uint32_t>(start);
    result.pattern[block] = static_cast<std::uint8_t>(pattern);
  }
  return result;
}

const Kernels& choose_kernels(const std::string& name) {
  if (name == "scalar") return scalar_kernels();
  if (name == "avx2" && avx2_kernels()) return *avx2_kernels();
  if (name == "ifma" && ifma_kernels()) return *ifma_kernels();
  if (name != "auto")
    throw std::invalid_argument("this processor has no kernels of the name " + name.substr(0, 16));
  if (ifma_kernels()) return *ifma_kernels();
  return avx2_kernels() ? *avx2_kernels() : scalar_kernels();
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names{scalar_kernels().name};
  if (avx2_kernels()) names.emplace_back(avx2_kernels()->name);
  if (ifma_kernels()) names.emplace_back(ifma_kernels()->name);
  return names;
}

}  // namespace tg

#include "expand.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

namespace tg {

static_assert(std::endian::native == std::endian::little, "SEAL's formats are little-endian");

namespace {

using Bytes = std::span<const std::uint8_t>;
constexpr std::size_t kBlock = 128;

constexpr u64 kInitial[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                             0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                             0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

constexpr std::uint8_t kSigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

using State = std::array<u64, 8>;

void mix(u64& a, u64& b, u64& c, u64& d, u64 x, u64 y) {
  a += b + x;
  d = std::rotr(d ^ a, 32);
  c += d;
  b = std::rotr(b ^ c, 24);
  a += b + y;
  d = std::rotr(d ^ a, 16);
  c += d;
  b = std::rotr(b ^ c, 63);
}

void compress(State& h, const std::uint8_t* block, u64 total, bool last) {
  u64 m[16], v[16];
  std::memcpy(m, block, sizeof m);
  for (std::size_t i = 0; i < 8; ++i) {
    v[i] = h[i];
    v[i + 8] = kInitial[i];
  }
  v[12] ^= total;
  if (last) v[14] = ~v[14];
  for (std::size_t round = 0; round < 12; ++round) {
    const auto& s = kSigma[round % 10];
    mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
    mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
    mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
    mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
    mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
    mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
    mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
    mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
  }
  for (std::size_t i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[i + 8];
}

// The parameter block, in words (BLAKE2X, section 2).
struct Parameters {
  u64 digest = 64, key = 0, fanout = 1, depth = 1, leaf = 0;
  u64 offset = 0, output = 0, node_depth = 0, inner = 0;

  State start() const {
    State h;
    std::copy(std::begin(kInitial), std::end(kInitial), h.begin());
    h[0] ^= digest | key << 8 | fanout << 16 | depth << 24 | leaf << 32;
    h[1] ^= offset | output << 32;
    h[2] ^= node_depth | inner << 8;
    return h;
  }
};

// Hashes at most one block of key and one of input.
State hash(const Parameters& parameters, Bytes key, Bytes in) {
  State h = parameters.start();
  std::uint8_t block[kBlock] = {};
  u64 total = 0;
  if (!key.empty()) {
    std::copy(key.begin(), key.end(), block);
    total = kBlock;
    compress(h, block, total, in.empty());
    if (in.empty()) return h;
    std::fill(std::begin(block), std::end(block), std::uint8_t{0});
  }
  std::copy(in.begin(), in.end(), block);
  compress(h, block, total + in.size(), true);
  return h;
}

// SEAL's generator: blocks of 4,096 bytes, the n-th from the counter n under the seed as key.
class Generator {
 public:
  explicit Generator(Bytes seed) : seed_(seed) {}

  void fill(void* out, std::size_t bytes) {
    auto* to = static_cast<std::uint8_t*>(out);
    while (bytes > 0) {
      if (used_ == buffer_.size()) refill();
      const std::size_t part = std::min(bytes, buffer_.size() - used_);
      std::memcpy(to, buffer_.data() + used_, part);
      to += part;
      bytes -= part;
      used_ += part;
    }
  }

 private:
  void refill() {
    std::uint8_t counter[8];
    std::memcpy(counter, &counter_, sizeof counter);
    blake2xb(buffer_, counter, seed_);
    ++counter_;
    used_ = 0;
  }

  Bytes seed_;
  u64 counter_ = 0;
  std::array<std::uint8_t, 4096> buffer_{};
  std::size_t used_ = buffer_.size();
};

}  // namespace

void blake2xb(std::span<std::uint8_t> out, Bytes in, Bytes key) {
  if (key.size() > 64 || in.size() > kBlock || out.empty() || out.size() >= 0xffffffff)
    throw std::invalid_argument("this BLAKE2Xb takes a key of 64 bytes and one block of input");
  Parameters root;
  root.key = key.size();
  root.output = out.size();
  const State seed = hash(root, key, in);
  const auto* words = reinterpret_cast<const std::uint8_t*>(seed.data());
  Parameters leaf;
  leaf.fanout = leaf.depth = 0;
  leaf.leaf = leaf.inner = 64;
  leaf.output = out.size();
  for (std::size_t at = 0; at < out.size(); at += 64, ++leaf.offset) {
    leaf.digest = std::min<std::size_t>(64, out.size() - at);
    const State node = hash(leaf, {}, {words, 64});
    std::memcpy(out.data() + at, node.data(), leaf.digest);
  }
}

void expand_uniform(u64* out, const Ring& ring, std::span<const std::size_t> places, Bytes seed) {
  if (seed.size() != kSeedBytes) throw std::invalid_argument("a seed has 64 bytes");
  const std::size_t n = ring.degree();
  Generator generator(seed);
  generator.fill(out, places.size() * n * sizeof(u64));
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Modulus& m = ring.modulus(places[i]);
    const u64 bound = ~u64{0} - reduce(~u64{0}, m) - 1;
    for (u64* x = out + i * n; x < out + (i + 1) * n; ++x) {
      while (*x >= bound) generator.fill(x, sizeof *x);
      *x = reduce(*x, m);
    }
  }
}

}  // namespace tg

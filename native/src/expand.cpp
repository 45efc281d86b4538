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

#include "blake2.hpp"

// The root hash of BLAKE2X for an output of `bytes`: keyed BLAKE2b of one counter.
std::array<u64, 8> root_hash(u64 counter, Bytes seed, u64 bytes) {
  std::array<u64, 8> h;
  std::copy(std::begin(kInitial), std::end(kInitial), h.begin());
  h[0] ^= u64{64} | u64{kSeedBytes} << 8 | u64{1} << 16 | u64{1} << 24;  // digest, key, fanout, depth
  h[1] ^= bytes << 32;
  u64 block[16] = {};
  std::memcpy(block, seed.data(), kSeedBytes);
  compress(h.data(), block, kBlock, false);
  std::fill(std::begin(block), std::end(block), u64{0});
  block[0] = counter;
  compress(h.data(), block, kBlock + sizeof counter, true);
  return h;
}

// SEAL's generator: blocks of 4,096 bytes, the n-th from the counter n under the seed as key.
class Generator {
 public:
  Generator(Bytes seed, const Kernels& kernels) : seed_(seed), kernels_(kernels) {}

  void fill(u64* out, std::size_t words) {
    while (words > 0) {
      if (used_ == buffer_.size()) refill();
      const std::size_t part = std::min(words, buffer_.size() - used_);
      std::memcpy(out, buffer_.data() + used_, part * sizeof(u64));
      out += part;
      words -= part;
      used_ += part;
    }
  }

 private:
  void refill() {
    constexpr std::size_t bytes = 4096;
    const auto root = root_hash(counter_++, seed_, bytes);
    kernels_.output_nodes(buffer_.data(), root.data(), bytes, bytes / 64);
    used_ = 0;
  }

  Bytes seed_;
  const Kernels& kernels_;
  u64 counter_ = 0;
  std::array<u64, 512> buffer_{};
  std::size_t used_ = buffer_.size();
};

}  // namespace

void expand_uniform(u64* out, const Ring& ring, std::span<const std::size_t> places, Bytes seed) {
  if (seed.size() != kSeedBytes) throw std::invalid_argument("a seed has 64 bytes");
  const std::size_t n = ring.degree();
  Generator generator(seed, ring.fastest());
  generator.fill(out, places.size() * n);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Modulus& m = ring.modulus(places[i]);
    const u64 bound = ~u64{0} - reduce(~u64{0}, m) - 1;
    for (u64* x = out + i * n; x < out + (i + 1) * n; ++x) {
      while (*x >= bound) generator.fill(x, 1);
      *x = reduce(*x, m);
    }
  }
}

}  // namespace tg

// BLAKE2b's compression (RFC 7693) on one state or, with vectors as words, on several side by side.
// No include guard: every set of kernels includes it for itself, in its own namespace and target.

constexpr u64 kInitial[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                             0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                             0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

constexpr std::uint8_t kSigma[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

template <int kBits, typename W>
inline W rotate_right(W x) {
  return (x >> kBits) | (x << (64 - kBits));
}

template <typename W, typename M>
inline void mix(W& a, W& b, W& c, W& d, M x, M y) {
  a = a + b + x;
  d = rotate_right<32>(d ^ a);
  c = c + d;
  b = rotate_right<24>(b ^ c);
  a = a + b + y;
  d = rotate_right<16>(d ^ a);
  c = c + d;
  b = rotate_right<63>(b ^ c);
}

// `h`: eight words of state; `m`: the sixteen words of the block, the same for every state.
template <typename W>
inline void compress(W* h, const u64* m, u64 total, bool last) {
  W v[16];
  for (std::size_t i = 0; i < 8; ++i) {
    v[i] = h[i];
    v[i + 8] = W{} + kInitial[i];
  }
  v[12] = v[12] ^ total;
  if (last) v[14] = ~v[14];
#pragma GCC unroll 12
  for (std::size_t round = 0; round < 12; ++round) {
    const std::uint8_t* s = kSigma[round];
    mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
    mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
    mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
    mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
    mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
    mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
    mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
    mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
  }
  for (std::size_t i = 0; i < 8; ++i) h[i] = h[i] ^ v[i] ^ v[i + 8];
}

// BLAKE2X's nodes 0 ... count - 1 of 64 bytes, from a root hash. `count` is a multiple of the lanes.
template <typename W>
void output_nodes(u64* out, const u64* root, u64 bytes, std::size_t count) {
  constexpr std::size_t lanes = sizeof(W) / sizeof(u64);
  u64 block[16] = {};
  for (std::size_t i = 0; i < 8; ++i) block[i] = root[i];
  for (std::size_t first = 0; first < count; first += lanes) {
    u64 offsets[lanes], words[8][lanes];
    for (std::size_t i = 0; i < lanes; ++i) offsets[i] = first + i;
    W h[8], offset;
    __builtin_memcpy(&offset, offsets, sizeof offset);
    for (std::size_t i = 0; i < 8; ++i) h[i] = W{} + kInitial[i];
    h[0] = h[0] ^ (u64{64} | u64{64} << 32);  // digest length; leaf length
    h[1] = h[1] ^ (offset | (bytes << 32));   // node offset; length of the whole output
    h[2] = h[2] ^ (u64{64} << 8);             // inner length
    compress(h, block, 64, true);
    __builtin_memcpy(words, h, sizeof words);
    for (std::size_t i = 0; i < lanes; ++i)
      for (std::size_t w = 0; w < 8; ++w) out[8 * (first + i) + w] = words[w][i];
  }
}

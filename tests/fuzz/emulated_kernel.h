// The intrinsics of the kernels for AVX-512 in those of AVX2 (emulated.py).
#define NBSNN_INLINE static inline __attribute__((always_inline))
struct Halves {
  __m256i low, high;
};
NBSNN_INLINE __m512i join(__m256i low, __m256i high) {
  Halves h{low, high};
  __m512i x;
  std::memcpy(&x, &h, 64);
  return x;
}
NBSNN_INLINE Halves parts(__m512i x) {
  Halves h;
  std::memcpy(&h, &x, 64);
  return h;
}
NBSNN_INLINE __m512i emulated_broadcast(__m128i x) {
  const __m256i y = _mm256_broadcastsi128_si256(x);
  return join(y, y);
}
NBSNN_INLINE __m512i emulated_shuffle(__m512i table, __m512i index) {
  const Halves t = parts(table), i = parts(index);
  return join(_mm256_shuffle_epi8(t.low, i.low), _mm256_shuffle_epi8(t.high, i.high));
}
NBSNN_INLINE uint64_t emulated_test(__m512i x, __m512i y) {
  uint64_t mask = 0;
  unsigned char a[64], b[64];
  std::memcpy(a, &x, 64), std::memcpy(b, &y, 64);
  for (int i = 0; i < 64; ++i) mask |= uint64_t{(a[i] & b[i]) != 0} << i;
  return mask;
}
NBSNN_INLINE __m512i emulated_permute(__m512i index, __m512i table) {
  unsigned char i[64], t[64], y[64];
  std::memcpy(i, &index, 64), std::memcpy(t, &table, 64);
  for (int k = 0; k < 64; ++k) y[k] = t[i[k] & 63];
  __m512i out;
  std::memcpy(&out, y, 64);
  return out;
}
NBSNN_INLINE __m512i emulated_permute_words(__m512i low, __m512i index, __m512i high, int last) {
  int16_t i[32], t[64], y[32];
  std::memcpy(i, &index, 64), std::memcpy(t, &low, 64), std::memcpy(t + 32, &high, 64);
  for (int k = 0; k < 32; ++k) y[k] = t[i[k] & last];
  __m512i out;
  std::memcpy(&out, y, 64);
  return out;
}
NBSNN_INLINE __m512i emulated_subtract(__m512i x, __m512i y) {
  const Halves a = parts(x), b = parts(y);
  return join(_mm256_subs_epi16(a.low, b.low), _mm256_subs_epi16(a.high, b.high));
}
NBSNN_INLINE __m512i emulated_distance(__m512i x, __m512i y) {
  const Halves a = parts(x), b = parts(y);
  return join(_mm256_sad_epu8(a.low, b.low), _mm256_sad_epu8(a.high, b.high));
}
NBSNN_INLINE int64_t emulated_total(__m512i x) {
  int64_t words[8], total = 0;
  std::memcpy(words, &x, 64);
  for (int64_t word : words) total += word;
  return total;
}
NBSNN_INLINE __m512i emulated_load(const void* from) {
  __m512i x;
  std::memcpy(&x, from, 64);
  return x;
}
NBSNN_INLINE __m512i emulated_each(int64_t x) {
  const __m256i y = _mm256_set1_epi64x(x);
  return join(y, y);
}
NBSNN_INLINE __m512i emulated_windows(__m512i places, __m512i words) {
  uint8_t p[64], y[64];
  uint64_t w[8];
  std::memcpy(p, &places, 64), std::memcpy(w, &words, 64);
  for (int k = 0; k < 64; ++k) {
    const int left = p[k] & 63;
    y[k] = static_cast<uint8_t>(left ? w[k / 8] >> left | w[k / 8] << (64 - left) : w[k / 8]);
  }
  return emulated_load(y);
}
NBSNN_INLINE __m512i emulated_permute_both(__m512i low, __m512i index, __m512i high) {
  unsigned char i[64], t[128], y[64];
  std::memcpy(i, &index, 64), std::memcpy(t, &low, 64), std::memcpy(t + 64, &high, 64);
  for (int k = 0; k < 64; ++k) y[k] = t[i[k] & 127];
  return emulated_load(y);
}
NBSNN_INLINE __m512i emulated_extend(__m256i x) { return join(x, _mm256_setzero_si256()); }
template <class F>
NBSNN_INLINE __mmask32 emulated_mask(__m512i x, __m512i y, F&& holds) {
  int16_t a[32], b[32];
  uint32_t mask = 0;
  std::memcpy(a, &x, 64), std::memcpy(b, &y, 64);
  for (int k = 0; k < 32; ++k) mask |= static_cast<uint32_t>(holds(a[k], b[k])) << k;
  return mask;
}
NBSNN_INLINE __m512i emulated_add_where(__m512i other, __mmask32 mask, __m512i x, __m512i y) {
  int16_t a[32], b[32], c[32];
  std::memcpy(a, &x, 64), std::memcpy(b, &y, 64), std::memcpy(c, &other, 64);
  for (int k = 0; k < 32; ++k) c[k] = mask >> k & 1 ? static_cast<int16_t>(a[k] + b[k]) : c[k];
  return emulated_load(c);
}
NBSNN_INLINE __m512i emulated_load_where(__mmask64 mask, const void* from) {
  unsigned char x[64] = {};
  for (int k = 0; k < 64; ++k)
    if (mask >> k & 1) x[k] = static_cast<const unsigned char*>(from)[k];
  return emulated_load(x);
}
#define _mm512_maskz_loadu_epi8 emulated_load_where
#define _mm512_test_epi16_mask(x, y) emulated_mask(x, y, [](int16_t a, int16_t b) { return (a & b) != 0; })
#define _mm512_cmpgt_epi16_mask(x, y) emulated_mask(x, y, [](int16_t a, int16_t b) { return a > b; })
#define _mm512_cmple_epi16_mask(x, y) emulated_mask(x, y, [](int16_t a, int16_t b) { return a <= b; })
#define _mm512_mask_add_epi16 emulated_add_where
#define _mm512_load_si512 emulated_load
#define _mm512_permutex2var_epi8 emulated_permute_both
#define _mm512_zextsi256_si512 emulated_extend
#define _mm512_set1_epi64 emulated_each
#define _mm512_multishift_epi64_epi8 emulated_windows
#define _mm512_permutexvar_epi8 emulated_permute
#define _mm512_permutexvar_epi16(index, table) emulated_permute_words(table, index, table, 31)
#define _mm512_permutex2var_epi16(low, index, high) emulated_permute_words(low, index, high, 63)
#define _mm512_subs_epi16 emulated_subtract
#define _mm512_sad_epu8 emulated_distance
#define _mm512_reduce_add_epi64 emulated_total
#define _mm512_loadu_si512 emulated_load
#define _mm512_broadcast_i32x4 emulated_broadcast
#define _mm512_shuffle_epi8 emulated_shuffle
#define _mm512_test_epi8_mask emulated_test

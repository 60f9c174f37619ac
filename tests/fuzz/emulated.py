"""The kernel for AVX-512 on a processor without it: each vector of 64 bytes is two of AVX2, and the kernel's tests run on that.

python tests/fuzz/emulated.py [pytest arguments]

The package is copied, the few intrinsics of the kernels for AVX-512, of dot products and of AMX are replaced in the copy, and all
of these instruction sets are said to be there.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NATIVE = Path("nbsnn", "integer", "native")
OPTIONS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-w"]
KERNELS = {
    "kernel_avx512.cpp": "avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt,prefer-vector-width=512",
    "kernel_avx512vbmi.cpp": "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,bmi,bmi2,popcnt,prefer-vector-width=512",
}
INTRINSICS = """
#define NBSNN_INLINE static inline __attribute__((always_inline))
struct Halves { __m256i low, high; };
NBSNN_INLINE __m512i join(__m256i low, __m256i high) { Halves h{low, high}; __m512i x; std::memcpy(&x, &h, 64); return x; }
NBSNN_INLINE Halves parts(__m512i x) { Halves h; std::memcpy(&h, &x, 64); return h; }
NBSNN_INLINE __m512i emulated_broadcast(__m128i x) { const __m256i y = _mm256_broadcastsi128_si256(x); return join(y, y); }
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
NBSNN_INLINE __m512i emulated_load(const void* from) { __m512i x; std::memcpy(&x, from, 64); return x; }
NBSNN_INLINE __m512i emulated_each(int64_t x) { const __m256i y = _mm256_set1_epi64x(x); return join(y, y); }
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
#define NBSNN_VB 64
"""

DOTS = """#include <immintrin.h>
namespace {
template <int BYTES>
struct Lanes {
  int32_t of[BYTES / 4];
};
#define NBSNN_SAME_LANES(name, lane)                                              \\
  template <class V>                                                              \\
  V name(const V& a, const V& b, const V& c) {                                    \\
    V y;                                                                          \\
    for (size_t i = 0; i < sizeof(V) / 4; ++i) y.of[i] = lane(a.of[i], b.of[i], c.of[i]); \\
    return y;                                                                     \\
  }
int32_t dot_lane(int32_t sum, int32_t counts, int32_t weights) {
  for (int i = 0; i < 4; ++i) sum += static_cast<uint8_t>(counts >> 8 * i) * static_cast<int8_t>(weights >> 8 * i);
  return sum;
}
int16_t half(int32_t x, int i) { return static_cast<int16_t>(x >> 16 * i); }
int32_t both(int low, int high) { return static_cast<int32_t>(static_cast<uint16_t>(low) | static_cast<uint32_t>(high) << 16); }
int32_t pairs_lane(int32_t sums, int32_t counts, int32_t weights) {
  int y[2];
  for (int i = 0; i < 2; ++i) {
    const int32_t sum = dot_lane(0, counts >> 16 * i & 0xffff, weights >> 16 * i & 0xffff);
    y[i] = half(sums, i) + std::clamp(sum, -32768, 32767);
  }
  return both(y[0], y[1]);
}
int32_t sum_lane(int32_t x, int32_t y, int32_t) { return x + y; }
int32_t widen_lane(int32_t x, int32_t, int32_t) { return half(x, 0) + half(x, 1); }
NBSNN_SAME_LANES(emulated_dots, dot_lane)
NBSNN_SAME_LANES(emulated_pairs, pairs_lane)
NBSNN_SAME_LANES(emulated_sums, sum_lane)
NBSNN_SAME_LANES(emulated_wide, widen_lane)
template <int BYTES>
Lanes<BYTES> emulated_load(const void* from) {
  Lanes<BYTES> x;
  std::memcpy(&x, from, BYTES);
  return x;
}
template <int BYTES>
Lanes<BYTES> emulated_each(int32_t word) {
  Lanes<BYTES> x;
  for (int32_t& lane : x.of) lane = word;
  return x;
}
template <class V>
void emulated_store(void* to, const V& x) {
  std::memcpy(to, &x, sizeof x);
}
thread_local uint8_t tiles[8][16][64];
void load_tile(int tile, const void* from, size_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, 64);
}
void store_tile(int tile, void* to, size_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], 64);
}
void multiply_tiles(int sums, int weights, int words) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      int32_t sum, w, x;
      std::memcpy(&sum, tiles[sums][row] + 4 * column, 4);
      for (int k = 0; k < 16; ++k) {
        std::memcpy(&w, tiles[weights][row] + 4 * k, 4), std::memcpy(&x, tiles[words][k] + 4 * column, 4);
        sum = dot_lane(sum, x, w);
      }
      std::memcpy(tiles[sums][row] + 4 * column, &sum, 4);
    }
}
}  // namespace
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig(shapes) (void)shapes
#define _tile_release()
#define _tile_zero(tile) std::memset(tiles[tile], 0, 1024)
#define _tile_loadd load_tile
#define _tile_stored store_tile
#define _tile_dpbsud multiply_tiles
"""
KINDS = """#define PLUS(x, y) emulated_sums(x, y, y)
#define WIDE(x) emulated_wide(x, x, x)
NBSNN_DOTS(pairs_256, , Lanes<32>, 2, run.apart, emulated_load<32>, emulated_each<32>, emulated_pairs, WIDE, PLUS, emulated_store)
NBSNN_DOTS(pairs_512, , Lanes<64>, 4, run.apart, emulated_load<64>, emulated_each<64>, emulated_pairs, WIDE, PLUS, emulated_store)
NBSNN_DOTS(dots_256, , Lanes<32>, 2, run.n, emulated_load<32>, emulated_each<32>, emulated_dots, SAME, PLUS, emulated_store)
NBSNN_DOTS(dots_512, , Lanes<64>, 4, run.n, emulated_load<64>, emulated_each<64>, emulated_dots, SAME, PLUS, emulated_store)
"""


def replace(path: Path, old: str, new: str) -> None:
    """Replace a piece of a file, which must be there."""
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"{path.name} no longer holds {old!r}; adapt emulated.py")
    path.write_text(text.replace(old, new))


def build(source: Path) -> None:
    """Build the extension of a copy of the package with the emulated kernel."""
    native = source / NATIVE
    for kernel, target in KERNELS.items():
        replace(native / kernel, target, "avx2,fma,bmi,bmi2,popcnt")
        replace(native / kernel, "#define NBSNN_VB 64\n", INTRINSICS)
    dots = native / "dots.cpp"
    replace(dots, "#include <immintrin.h>\n", DOTS)
    text = re.sub(r"NBSNN_DOTS\((pairs|dots)_(256|512), .*?\)\n", "", dots.read_text(), flags=re.DOTALL)
    dots.write_text(re.sub(r"#define NBSNN_AVX2 ", lambda found: KINDS + found[0], text))
    for file, functions in ((dots, 7), (native / "targets.cpp", 3)):
        intel, *others = re.split(r"(?=#elif defined\(__aarch64__\)\n(?:namespace|constexpr))", file.read_text())
        intel, replaced = re.subn(r"(bool has_\w+\(\) \{).*?;\s\}\n", r"\1 return true; }\n", intel, flags=re.DOTALL)
        if replaced != functions:
            raise SystemExit(f"{file.name} has {replaced} functions that tell instruction sets; adapt emulated.py")
        file.write_text("".join([intel, *others]))
    for built in native.parent.glob("_native*"):
        subprocess.run(["g++", *OPTIONS, "-o", built, *sorted(native.glob("*.cpp"))], check=True)


def main(arguments: Sequence[str]) -> int:
    """Run the tests of the native backend, or those that pytest's arguments name."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        build(source)
        seen = "from nbsnn.integer.backends import library; assert library.targets()[-1] == 'amx', library.targets()"
        subprocess.run([sys.executable, "-c", seen], cwd=folder, env={"PYTHONPATH": str(source)}, check=True)
        tests = arguments or ["-q", "tests/test_native.py", "tests/test_max_pool_integer.py"]
        return subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env={"PYTHONPATH": str(source)}).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

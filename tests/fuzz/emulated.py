"""The kernel for AVX-512 on a processor without it: each vector of 64 bytes is two of AVX2, and the kernel's tests run on that.

python tests/fuzz/emulated.py [pytest arguments]

The package is copied, the few intrinsics of the kernels for AVX-512, with VBMI and without, are replaced in the copy, and both
are said to be there.
"""

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
    replace(native / "targets.cpp", "  if (target == 3 &&", "  if (target >= 2) return true;\n  if (target == 3 &&")
    for built in native.parent.glob("_native*"):
        subprocess.run(["g++", *OPTIONS, "-o", built, *sorted(native.glob("*.cpp"))], check=True)


def main(arguments: Sequence[str]) -> int:
    """Run the tests of the native backend, or those that pytest's arguments name."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        build(source)
        seen = "from nbsnn.integer.backends import library; assert library.targets()[-1] == 'avx512vbmi', library.targets()"
        subprocess.run([sys.executable, "-c", seen], cwd=folder, env={"PYTHONPATH": str(source)}, check=True)
        tests = arguments or ["-q", "tests/test_native.py", "tests/test_max_pool_integer.py"]
        return subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env={"PYTHONPATH": str(source)}).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

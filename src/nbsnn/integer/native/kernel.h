// What the kernel includes, for each file that compiles it for an instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dots.h"
#include "flight.h"
#include "tables.h"
#include "targets.h"

namespace nbsnn {

struct alignas(32) Octet {
  uint16_t index[8];  // which bits of the row's number are set
  int n;              // how many
};

struct Octets {
  Octet row[256];
  constexpr Octets() : row{} {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0; bit < 8; ++bit)
        if (mask >> bit & 1) row[mask].index[row[mask].n++] = static_cast<uint16_t>(bit);
  }
};

inline constexpr Octets kOctets;

alignas(64) inline constexpr int8_t kPopcount[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};

// The kernel of each instruction set (kernel_*.cpp).
extern const Kernel kBaseline, kAvx2, kAvx512, kAvx512Vbmi;

}  // namespace nbsnn

// A head's sums as logits. No multiplication and addition is contracted, so that they are the same bits as torch's.
#include "logits.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace nbsnn {

void write_logits(const Net& net, const int64_t* sums, int64_t batch, float* out) {
  for (int64_t i = 0; i < batch; ++i)
    for (size_t o = 0; o < net.bias.size(); ++o)
      *out++ = static_cast<float>(net.bias[o] + static_cast<double>(*sums++) * net.factors[o]);
}

}  // namespace nbsnn

// The kernel for any processor of the architecture.
#include "kernel.h"

#define NBSNN_VB 16
#include "kernel.inc"

namespace nbsnn {
const Kernel kBaseline = kKernel;
}  // namespace nbsnn

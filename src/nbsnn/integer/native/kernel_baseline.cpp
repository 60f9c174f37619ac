// The kernel for any processor of the architecture.
#include "kernel.h"

#define NBSNN_VB 16
namespace nbsnn {
namespace {
#include "kernel.inc"
}
const Kernel kBaseline = kKernel;
}  // namespace nbsnn

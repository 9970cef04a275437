// The memory that a CUDA context keeps for its threads' stacks.

#include <cerrno>

#include "connector/src/driver.h"
#include "connector/src/error.h"
#include "connector/src/rouse_connector.h"

using rouse::connector::CudaStatus;
using rouse::connector::Driver;
using rouse::connector::Fail;

int rouse_gpu_set_stack(size_t bytes, size_t* before) {
  if (before == nullptr) return Fail(EINVAL, "rouse_gpu_set_stack needs a place for what it was");
  const Driver* const driver = rouse::connector::GetDriver();
  if (driver == nullptr) return -ENODEV;
  const int result = CudaStatus(*driver, driver->ctx_get_limit(before, CU_LIMIT_STACK_SIZE),
                                "find how large this GPU's stacks are");
  if (result < 0) return result;
  return CudaStatus(*driver, driver->ctx_set_limit(CU_LIMIT_STACK_SIZE, bytes),
                    "change the size of this GPU's stacks");
}

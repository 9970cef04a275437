// UCX for host memory: over the NICs that are nearest to this process.

#pragma once

#include <memory>

#include "agent/fabric/rails.h"
#include "agent/ucx/context.h"
#include "common/result.h"

namespace rouse::transfer {

struct HostContext {
  std::shared_ptr<ucx::Context> ucx;
  fabric::Rails rails;  ///< What was chosen; a variable that the user has set went before it.
};

/// Errors are ucx::Context::Create's.
Result<HostContext> CreateHostContext();

/// What UCX is told of `rails`: nothing where there are none.
ucx::ContextOptions OptionsFor(const fabric::Rails& rails);

}  // namespace rouse::transfer

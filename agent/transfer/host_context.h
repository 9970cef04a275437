// UCX for host memory: over the NICs that are nearest to this process.
//
// Weights in GPU memory pass through host memory before UCX sees them (staged_pull.h), so no GPU's
// place has a say. Were GPU memory registered, each rank would need a context of its own, over the
// NICs near its GPU (fabric::ChooseRails of its PlaceOfPci).

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

#include "agent/transfer/host_context.h"

#include <utility>

namespace rouse::transfer {

ucx::ContextOptions OptionsFor(const fabric::Rails& rails) {
  ucx::ContextOptions options{.net_devices = {}, .max_rails = rails.ports.size()};
  if (rails.some_left_out) {
    options.net_devices = rails.ports;
    // Else a peer without RDMA could not be reached at all. UCX prefers RDMA where there is both.
    for (std::string& name : fabric::ActiveInterfaces()) {
      options.net_devices.push_back(std::move(name));
    }
  }
  return options;
}

Result<HostContext> CreateHostContext() {
  HostContext out;
  out.rails = fabric::ChooseRails(fabric::ReadTopology(), fabric::PlaceOfProcess());
  ROUSE_ASSIGN_OR_RETURN(out.ucx, ucx::Context::Create(OptionsFor(out.rails)));
  return out;
}

}  // namespace rouse::transfer

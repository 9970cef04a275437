// Clients of other agents, each made when it is first needed and kept. By one thread.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/http.h"
#include "common/messages.h"
#include "common/result.h"

namespace rouse::agent {

class PeerClients {
 public:
  using Dial = std::function<Result<std::unique_ptr<http::Client>>(const std::string& pod,
                                                                   const std::string& address)>;
  explicit PeerClients(Dial dial) : dial_(std::move(dial)) {}

  /// nullptr for one without an address, and while none can be made. Lives until it is dropped.
  http::Client* To(const std::string& pod, const std::string& address);
  http::Client* To(const Keeper& keeper) { return To(keeper.pod, keeper.address); }

  /// Drops those of all others.
  void KeepOnly(const std::vector<Keeper>& keepers);
  void Clear() { clients_.clear(); }

 private:
  const Dial dial_;
  /// By pod and address.
  std::map<std::pair<std::string, std::string>, std::unique_ptr<http::Client>> clients_;
};

}  // namespace rouse::agent

#include "agent/server/peer_clients.h"

#include <algorithm>

namespace rouse::agent {

http::Client* PeerClients::To(const std::string& pod, const std::string& address) {
  if (address.empty()) return nullptr;
  auto& client = clients_[{pod, address}];
  if (client == nullptr) {
    if (auto made = dial_(pod, address); made.ok()) client = *std::move(made);
  }
  return client.get();
}

void PeerClients::KeepOnly(const std::vector<Keeper>& keepers) {
  std::erase_if(clients_, [&](const auto& entry) {
    return std::none_of(keepers.begin(), keepers.end(), [&](const Keeper& keeper) {
      return entry.first == std::pair(keeper.pod, keeper.address);
    });
  });
}

}  // namespace rouse::agent

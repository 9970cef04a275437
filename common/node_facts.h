// What an agent finds on its node that weights could go by. Told with each report, for people.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/json.h"
#include "common/result.h"

namespace rouse {

struct RdmaFact {
  std::string name;  ///< "mlx5_0:1"
  bool active = false;
  bool accessible = false;  ///< The agent may open the device.
  std::uint64_t gbit_per_s = 0;

  bool operator==(const RdmaFact&) const = default;
};

struct NodeFacts {
  std::vector<RdmaFact> rdma;       ///< At most kMaxRdmaFacts.
  std::string gpu_driver;           ///< Version of NVIDIA's; empty: none is loaded.
  std::uint64_t gpus = 0;           ///< That the agent may open.
  bool peer_memory = false;         ///< Module nvidia_peermem is loaded.
  std::string node_folder_problem;  ///< Why agents of the node cannot copy from each other.
  std::int64_t locked_memory = -1;  ///< How many bytes the agent may lock; -1: no limit.

  bool operator==(const NodeFacts&) const = default;
};

inline constexpr std::size_t kMaxRdmaFacts = 64;
inline constexpr std::size_t kMaxFactText = 512;

json::Json ToJson(const NodeFacts& facts);
Result<NodeFacts> NodeFactsFromJson(const json::Json& value, const std::string& path);

}  // namespace rouse

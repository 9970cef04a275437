#include "common/node_facts.h"

namespace rouse {

json::Json ToJson(const NodeFacts& facts) {
  json::Json rdma = json::Json::array();
  for (const RdmaFact& port : facts.rdma) {
    rdma.push_back({{"name", port.name},
                    {"active", port.active},
                    {"accessible", port.accessible},
                    {"gbitPerS", port.gbit_per_s}});
  }
  return {{"rdma", std::move(rdma)},
          {"gpuDriver", facts.gpu_driver},
          {"gpus", facts.gpus},
          {"peerMemory", facts.peer_memory},
          {"nodeFolderProblem", facts.node_folder_problem},
          {"lockedMemory", facts.locked_memory}};
}

Result<NodeFacts> NodeFactsFromJson(const json::Json& value, const std::string& path) {
  json::Reader in(value, path);
  NodeFacts facts{.rdma = {},
                  .gpu_driver = in.StringOr("gpuDriver", ""),
                  .gpus = static_cast<std::uint64_t>(in.IntOr("gpus", 0)),
                  .peer_memory = in.BoolOr("peerMemory", false),
                  .node_folder_problem = in.StringOr("nodeFolderProblem", ""),
                  .locked_memory = in.IntOr("lockedMemory", -1, -1)};
  facts.rdma = in.ObjectsOrEmpty("rdma", kMaxRdmaFacts, [](json::Reader& port) {
    RdmaFact fact{.name = port.String("name"),
                  .active = port.Bool("active"),
                  .accessible = port.Bool("accessible"),
                  .gbit_per_s = static_cast<std::uint64_t>(port.IntOr("gbitPerS", 0))};
    if (fact.name.size() > kMaxFactText) port.Fail("name", "is over 512 bytes");
    return fact;
  });
  for (const auto& [key, text] : {std::pair{"gpuDriver", &facts.gpu_driver},
                                  std::pair{"nodeFolderProblem", &facts.node_folder_problem}}) {
    if (text->size() > kMaxFactText) in.Fail(key, "is over 512 bytes");
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  return facts;
}

}  // namespace rouse

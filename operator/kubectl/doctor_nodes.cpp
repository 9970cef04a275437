#include "operator/kubectl/doctor_nodes.h"

#include <algorithm>
#include <map>
#include <set>

#include "common/node_facts.h"
#include "operator/api/names.h"

namespace rouse::kubectl {
namespace {

using Level = Finding::Level;

constexpr char kNodesPage[] = "docs/operations.md, \"What nodes need\"";

std::string Named(const std::vector<RdmaFact>& ports) {
  std::string text;
  for (const RdmaFact& port : ports) {
    text += (text.empty() ? "" : ", ") + port.name;
    if (port.gbit_per_s > 0) text += " (" + std::to_string(port.gbit_per_s) + " Gbit/s)";
  }
  return text;
}

class Node {
 public:
  Node(const std::string& name, const NodeFacts& facts, std::uint64_t weights,
       std::vector<Finding>& out)
      : subject_("node " + name), facts_(facts), weights_(weights), out_(out) {}

  void Check() {
    CheckNics();
    CheckGpus();
    CheckFolder();
  }

 private:
  void Add(Level level, std::string text, std::string remedy = "") {
    out_.push_back({level, subject_, std::move(text), std::move(remedy)});
  }

  void CheckNics() {
    std::vector<RdmaFact> usable, closed, down;
    for (const RdmaFact& port : facts_.rdma) {
      (!port.active ? down : port.accessible ? usable : closed).push_back(port);
    }
    if (!usable.empty()) Add(Level::kOk, "RDMA by " + Named(usable));
    if (!closed.empty()) {
      Add(Level::kWarning, "agents may not open " + Named(closed) + ", which is active",
          "give agents the RDMA devices: chart value agent.rdma.resourceName");
    }
    if (!down.empty()) {
      Add(Level::kWarning, "no link at " + Named(down),
          "see `rdma link` on the node; if nothing is meant to be there, this is as it should be");
    }
    if (facts_.rdma.empty()) {
      Add(Level::kOk, "no RDMA device: weights come from other nodes by TCP");
    }
    const bool little =
        facts_.locked_memory >= 0 && static_cast<std::uint64_t>(facts_.locked_memory) < weights_;
    if (!usable.empty() && little) {
      Add(Level::kWarning,
          "agents may lock " + std::to_string(facts_.locked_memory >> 20) +
              " MiB, and RDMA moves weights of " + std::to_string(weights_ >> 20) +
              " MiB from and into locked memory",
          std::string("raise the limit of locked memory of the node's containers: ") + kNodesPage);
    }
  }

  void CheckGpus() {
    if (facts_.gpu_driver.empty()) return Add(Level::kOk, "no NVIDIA driver is loaded");
    if (facts_.gpus == 0) {
      return Add(Level::kWarning,
                 "NVIDIA driver " + facts_.gpu_driver +
                     " is loaded, and agents see no GPU: weights are kept in host memory",
                 std::string("let agents see the node's GPUs: ") + kNodesPage);
    }
    Add(Level::kOk, "NVIDIA driver " + facts_.gpu_driver + ", agents see " +
                        std::to_string(facts_.gpus) + (facts_.gpus == 1 ? " GPU" : " GPUs"));
    if (facts_.rdma.empty()) return;
    Add(Level::kOk, "GPUDirect RDMA is not used, module nvidia_peermem is " +
                        std::string(facts_.peer_memory ? "" : "not ") +
                        "loaded: weights in GPU memory go to other nodes through host memory");
  }

  void CheckFolder() {
    if (facts_.node_folder_problem.empty()) {
      return Add(Level::kOk, "agents of the node copy weights from each other");
    }
    // What it costs is a copy in host memory, or GPUs' memory that nobody else can read.
    Add(facts_.gpus > 0 ? Level::kWarning : Level::kOk,
        "agents of the node read each other's weights over the network, the node folder: " +
            facts_.node_folder_problem,
        facts_.gpus > 0
            ? std::string("set the chart value agent.nodeFolder to a folder of the node "
                          "with mode 1777: ") +
                  kNodesPage
            : "");
  }

  std::string subject_;
  const NodeFacts& facts_;
  std::uint64_t weights_;
  std::vector<Finding>& out_;
};

struct Told {
  NodeFacts facts;
  std::uint64_t weights = 0;  ///< Of the largest instance there.
};

std::optional<NodeFacts> FactsOf(const plan::Instance& instance) {
  const auto document = json::Parse(Reported(instance, api::kAnnotationNodeFacts), "nodeFacts");
  if (!document.ok()) return std::nullopt;
  const auto facts = NodeFactsFromJson(*document, "nodeFacts");
  return facts.ok() ? std::optional(*facts) : std::nullopt;
}

}  // namespace

void CheckNodes(const std::vector<ServiceView>& services, std::vector<Finding>& out) {
  std::map<std::string, Told> nodes;
  std::set<std::string> silent;
  for (const ServiceView& view : services) {
    for (const plan::Instance& instance : view.instances) {
      if (instance.node.empty() || instance.deleting) continue;
      const auto facts = FactsOf(instance);
      if (!facts) {
        silent.insert(instance.node);
        continue;
      }
      Told& told = nodes[instance.node];
      told.facts = *facts;
      if (instance.weights) told.weights = std::max(told.weights, instance.weights->bytes);
    }
  }
  for (const auto& [name, told] : nodes) Node(name, told.facts, told.weights, out).Check();
  for (const std::string& name : silent) {
    if (nodes.contains(name)) continue;
    out.push_back(
        {Level::kUnchecked, "node " + name,
         "NICs, GPUs and driver: no agent there has told of them yet",
         "wait for a report; an agent of an older release tells of them in its log only"});
  }
}

}  // namespace rouse::kubectl

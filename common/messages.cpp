#include "common/messages.h"

#include "common/protocol.h"

namespace rouse {
namespace {

constexpr std::size_t kMaxPeers = 1024;
constexpr std::size_t kMaxMessage = 4096;

std::string KeepersDigest(json::Reader& in) {
  std::string digest = in.StringOr("keepersDigest", "");
  if (digest.size() > kMaxKeepersDigest) in.Fail("keepersDigest", "is over 64 bytes");
  return digest;
}

Peer ReadPeer(json::Reader& in) {
  return {.pod = in.String("pod"),
          .node = in.String("node"),
          .address = in.String("address"),
          .partial = in.BoolOr("partial", false),
          .distance = in.EnumOr<Distance>("distance", kDistances, Distance::kFarther)};
}

Sibling ReadSibling(json::Reader& in) {
  return {.pod = in.String("pod"),
          .address = in.String("address"),
          .decided_at_us = in.Int("decidedAtUs")};
}

Keeper ReadKeeper(json::Reader& in) {
  return {.pod = in.String("pod"),
          .node = in.String("node"),
          .address = in.String("address"),
          .leaving = in.BoolOr("leaving", false)};
}

}  // namespace

std::string_view ToString(AgentState state) {
  return json::NameOf<AgentState>(state, kAgentStates);
}

json::Json ToJson(const WeightsReport& weights) {
  return {{"form", ToString(weights.form)}, {"identity", weights.identity},
          {"bytes", weights.bytes},         {"ranks", weights.ranks},
          {"servable", weights.servable},   {"arriving", weights.arriving}};
}

json::Json ToJson(const BytesBySource& bytes) {
  return {{"peer", bytes.peer}, {"storage", bytes.storage}};
}

json::Json ToJson(const EngineLoad& load) {
  return {{"running", load.running}, {"waiting", load.waiting}};
}

json::Json ToJson(const AgentReport& report) {
  json::Json out = Envelope(kAgentProtocol, kAgentVersion);
  out["namespace"] = report.pod_namespace;
  out["pod"] = report.pod;
  out["podUid"] = report.pod_uid;
  out["node"] = report.node;
  out["address"] = report.address;
  out["state"] = ToString(report.state);
  out["message"] = report.message;
  out["weights"] = report.weights ? ToJson(*report.weights) : json::Json();
  out["bytesBySource"] = ToJson(report.bytes_by_source);
  out["transport"] = report.transport;
  out["transportFallback"] = report.transport_fallback;
  if (!report.state_origin.empty()) out["stateOrigin"] = report.state_origin;
  if (!report.state_miss.empty()) out["stateMiss"] = report.state_miss;
  if (!report.keepers_digest.empty()) out["keepersDigest"] = report.keepers_digest;
  out["timeline"] = report.timeline ? ToJson(*report.timeline) : json::Json();
  if (report.load) out["load"] = ToJson(*report.load);
  if (report.node_facts) out["nodeFacts"] = ToJson(*report.node_facts);
  return out;
}

json::Json PeersToJson(const std::vector<Peer>& peers) {
  json::Json out = json::Json::array();
  for (const Peer& peer : peers) {
    out.push_back({{"pod", peer.pod},
                   {"node", peer.node},
                   {"address", peer.address},
                   {"partial", peer.partial},
                   {"distance", json::NameOf<Distance>(peer.distance, kDistances)}});
  }
  return out;
}

json::Json ToJson(const Assignment& assignment) {
  json::Json out = Envelope(kAgentProtocol, kAgentVersion);
  out["path"] = ToString(assignment.path);
  out["peers"] = PeersToJson(assignment.peers);
  out["reportAfterMs"] = assignment.report_after_ms;
  if (!assignment.expecting) out["expecting"] = false;
  for (const Sibling& sibling : assignment.siblings) {
    out["siblings"].push_back({{"pod", sibling.pod},
                               {"address", sibling.address},
                               {"decidedAtUs", sibling.decided_at_us}});
  }
  for (const Keeper& keeper : assignment.keepers) {
    json::Json entry = {{"pod", keeper.pod}, {"node", keeper.node}, {"address", keeper.address}};
    if (keeper.leaving) entry["leaving"] = true;
    out["keepers"].push_back(std::move(entry));
  }
  if (!assignment.keepers_digest.empty()) out["keepersDigest"] = assignment.keepers_digest;
  if (assignment.state_copies > 0) out["stateCopies"] = assignment.state_copies;
  return out;
}

Result<WeightsReport> WeightsReportFromJson(const json::Json& value, const std::string& path) {
  json::Reader in(value, path);
  constexpr std::size_t kMaxIdentity = 128;
  WeightsReport weights{.form = in.Enum<WeightForm>("form", kWeightForms),
                        .identity = in.String("identity"),
                        .bytes = static_cast<std::uint64_t>(in.Int("bytes")),
                        .ranks = static_cast<std::uint32_t>(in.Int("ranks", 0, kMaxWorldSize)),
                        .servable = in.Bool("servable"),
                        .arriving = in.BoolOr("arriving", false)};
  if (weights.identity.size() > kMaxIdentity) in.Fail("identity", "is over 128 bytes");
  ROUSE_RETURN_IF_ERROR(in.status());
  return weights;
}

Result<BytesBySource> BytesBySourceFromJson(const json::Json& value, const std::string& path) {
  json::Reader in(value, path);
  BytesBySource bytes{.peer = static_cast<std::uint64_t>(in.Int("peer")),
                      .storage = static_cast<std::uint64_t>(in.Int("storage"))};
  ROUSE_RETURN_IF_ERROR(in.status());
  return bytes;
}

Result<EngineLoad> EngineLoadFromJson(const json::Json& value, const std::string& path) {
  json::Reader in(value, path);
  EngineLoad load{.running = static_cast<std::uint64_t>(in.Int("running", 0, kMaxRequests)),
                  .waiting = static_cast<std::uint64_t>(in.Int("waiting", 0, kMaxRequests))};
  ROUSE_RETURN_IF_ERROR(in.status());
  return load;
}

Result<AgentReport> AgentReportFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kAgentProtocol, kAgentVersion));
  AgentReport report{.pod_namespace = in.String("namespace"),
                     .pod = in.String("pod"),
                     .pod_uid = in.String("podUid"),
                     .node = in.String("node"),
                     .address = in.String("address"),
                     .state = in.Enum<AgentState>("state", kAgentStates),
                     .message = in.StringOr("message", ""),
                     .weights = std::nullopt,
                     .bytes_by_source = {},
                     .transport = in.StringOr("transport", ""),
                     .transport_fallback = in.StringOr("transportFallback", ""),
                     .state_origin = in.StringOr("stateOrigin", ""),
                     .state_miss = in.StringOr("stateMiss", ""),
                     .timeline = std::nullopt,
                     .load = std::nullopt,
                     .node_facts = std::nullopt,
                     .keepers_digest = KeepersDigest(in)};
  for (const char* key : {"message", "address", "node", "transport", "transportFallback",
                          "stateOrigin", "stateMiss"}) {
    if (in.StringOr(key, "").size() > kMaxMessage) in.Fail(key, "is over 4096 bytes");
  }
  auto bytes = BytesBySourceFromJson(in.Object("bytesBySource"), in.Path("bytesBySource"));
  in.Take(bytes.status());
  ROUSE_RETURN_IF_ERROR(in.status());
  report.bytes_by_source = *bytes;
  if (in.Has("weights")) {
    ROUSE_ASSIGN_OR_RETURN(report.weights, WeightsReportFromJson(in.Object("weights"), "weights"));
  }
  if (in.Has("timeline")) {
    ROUSE_ASSIGN_OR_RETURN(report.timeline, TimelineFromJson(in.Object("timeline"), "timeline"));
  }
  if (in.Has("load")) {
    ROUSE_ASSIGN_OR_RETURN(report.load, EngineLoadFromJson(in.Object("load"), "load"));
  }
  if (in.Has("nodeFacts")) {
    ROUSE_ASSIGN_OR_RETURN(report.node_facts,
                           NodeFactsFromJson(in.Object("nodeFacts"), "nodeFacts"));
  }
  return report;
}

std::vector<Peer> ReadPeers(json::Reader& in, std::string_view key) {
  return in.Objects(key, kMaxPeers, ReadPeer);
}

Result<Assignment> AssignmentFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kAgentProtocol, kAgentVersion));
  Assignment assignment;
  assignment.path = in.Enum<StartPath>("path", kStartPaths);
  assignment.report_after_ms = in.Int("reportAfterMs", 10, 3'600'000);
  assignment.expecting = in.BoolOr("expecting", true);
  assignment.peers = ReadPeers(in, "peers");
  assignment.siblings = in.ObjectsOrEmpty("siblings", kMaxPeers, ReadSibling);
  assignment.keepers = in.ObjectsOrEmpty("keepers", kMaxKeepers, ReadKeeper);
  assignment.keepers_digest = KeepersDigest(in);
  assignment.state_copies = static_cast<int>(in.IntOr("stateCopies", 0, 0, kMaxStateCopies));
  ROUSE_RETURN_IF_ERROR(in.status());
  return assignment;
}

}  // namespace rouse

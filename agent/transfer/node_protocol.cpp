#include "agent/transfer/node_protocol.h"

#include "agent/transfer/source_wire.h"

namespace rouse::transfer {
namespace {

constexpr std::int64_t kMaxSlabsAMessage = 64;
constexpr std::int64_t kMaxSlabs = 65536;

Status CheckProtocol(json::Reader& in) {
  const std::string protocol = in.String("protocol");
  const std::int64_t version = in.Int("version");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (protocol == kNodeProtocol && version == kNodeVersion) return {};
  return FailedPrecondition("the other agent speaks " + protocol + " " + std::to_string(version) +
                            ", this one " + std::string(kNodeProtocol) + " " +
                            std::to_string(kNodeVersion));
}

json::Json Envelope() {
  return {{"protocol", kNodeProtocol}, {"version", kNodeVersion}};
}

}  // namespace

json::Json ToJson(const NodeRequest& request) {
  json::Json out = Envelope();
  out["lease"] = request.lease;
  out["rank"] = request.rank;
  out["first"] = request.first;
  out["count"] = request.count;
  return out;
}

json::Json ToJson(const NodeAnswer& answer) {
  json::Json out = Envelope();
  out["memory"] = answer.memory;
  return out;
}

json::Json NodeError(const Status& status) {
  return WireError(status);
}

Result<NodeRequest> DecodeNodeRequest(std::string_view text) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(text, "request"));
  json::Reader in(body, "request");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in));
  NodeRequest request{.lease = in.String("lease"),
                      .rank = static_cast<std::uint32_t>(in.Int("rank", 0, 65535)),
                      .first = static_cast<std::size_t>(in.Int("first", 0, kMaxSlabs)),
                      .count = static_cast<std::size_t>(in.Int("count", 1, kMaxSlabsAMessage))};
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

Result<NodeAnswer> DecodeNodeAnswer(std::string_view text) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(text, "answer"));
  ROUSE_RETURN_IF_ERROR(WireStatus(body));
  json::Reader in(body, "answer");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in));
  NodeAnswer answer{.memory = in.String("memory")};
  ROUSE_RETURN_IF_ERROR(in.status());
  return answer;
}

bool IsNodeSocketName(std::string_view name) {
  return !name.empty() && name.size() <= 64 && name.front() != '.' &&
         name.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") ==
             std::string_view::npos;
}

}  // namespace rouse::transfer

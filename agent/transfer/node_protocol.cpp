#include "agent/transfer/node_protocol.h"

#include <cstring>

#include "agent/transfer/source_wire.h"
#include "common/base64.h"
#include "common/protocol.h"

namespace rouse::transfer {
namespace {

constexpr std::int64_t kMaxSlabsAMessage = 64;
constexpr std::int64_t kMaxSlabs = 65536;
/// "GPU-" and a UUID are 40; host names have at most 64, boot ids 36.
constexpr std::size_t kMaxGpu = 64;
constexpr std::size_t kMaxDomain = 256;
constexpr std::int64_t kMaxSeats = 1024;
constexpr std::int64_t kMaxWaitMs = 10'000;
constexpr std::size_t kMaxReason = 1024;

Status CheckLength(const std::string& text, std::size_t most, const char* field) {
  if (text.size() <= most) return {};
  return InvalidArgument(std::string(field) + ": " + std::to_string(text.size()) +
                         " bytes, at most " + std::to_string(most));
}

Result<NodeRequest> DecodeRequest(json::Reader& in) {
  NodeRequest request{.lease = in.String("lease"),
                      .rank = static_cast<std::uint32_t>(in.Int("rank", 0, 65535)),
                      .first = static_cast<std::size_t>(in.Int("first", 0, kMaxSlabs)),
                      .count = static_cast<std::size_t>(in.Int("count", 1, kMaxSlabsAMessage))};
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

Result<NodeJoin> DecodeJoin(json::Reader& in) {
  NodeJoin join{.lease = in.String("lease"),
                .rank = static_cast<std::uint32_t>(in.Int("rank", 0, 65535)),
                .member = {.domain = in.String("domain"), .gpu = in.String("gpu")}};
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_RETURN_IF_ERROR(CheckLength(join.member.domain, kMaxDomain, "request.domain"));
  ROUSE_RETURN_IF_ERROR(CheckLength(join.member.gpu, kMaxGpu, "request.gpu"));
  return join;
}

Result<memory::BroadcastSeat> DecodeSeat(json::Reader& in) {
  memory::BroadcastSeat seat;
  seat.ranks = static_cast<int>(in.Int("ranks", 2, kMaxSeats));
  seat.rank = static_cast<int>(in.Int("seat", 1, seat.ranks - 1));
  const std::string text = in.String("id");
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_ASSIGN_OR_RETURN(const std::string id, Base64Decode(text, "answer.id"));
  if (id.size() != seat.id.size()) {
    return InvalidArgument("answer.id: " + std::to_string(id.size()) + " bytes, expected " +
                           std::to_string(seat.id.size()));
  }
  std::memcpy(seat.id.data(), id.data(), id.size());
  return seat;
}

}  // namespace

json::Json ToJson(const NodeRequest& request) {
  json::Json out = Envelope(kNodeProtocol, kNodeVersion);
  out["lease"] = request.lease;
  out["rank"] = request.rank;
  out["first"] = request.first;
  out["count"] = request.count;
  return out;
}

json::Json ToJson(const NodeAnswer& answer) {
  json::Json out = Envelope(kNodeProtocol, kNodeVersion);
  out["memory"] = answer.memory;
  return out;
}

json::Json ToJson(const NodeJoin& join) {
  json::Json out = Envelope(kNodeProtocol, kNodeVersion);
  out["type"] = "Join";
  out["lease"] = join.lease;
  out["rank"] = join.rank;
  out["domain"] = join.member.domain;
  out["gpu"] = join.member.gpu;
  return out;
}

json::Json ToJson(const NodeJoinAnswer& answer) {
  json::Json out = Envelope(kNodeProtocol, kNodeVersion);
  if (const auto* wait = std::get_if<JoinWait>(&answer)) {
    out["type"] = "Wait";
    out["askAgainMs"] = wait->time.count();
  } else if (const auto* pull = std::get_if<JoinPull>(&answer)) {
    out["type"] = "Pull";
    out["reason"] = pull->reason.substr(0, kMaxReason);
  } else {
    const auto& seat = std::get<memory::BroadcastSeat>(answer);
    out["type"] = "Seat";
    out["seat"] = seat.rank;
    out["ranks"] = seat.ranks;
    out["id"] = Base64Encode({reinterpret_cast<const char*>(seat.id.data()), seat.id.size()});
  }
  return out;
}

json::Json NodeError(const Status& status) {
  return WireError(status);
}

Result<NodeMessage> DecodeNodeMessage(std::string_view text) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(text, "request"));
  json::Reader in(body, "request");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kNodeProtocol, kNodeVersion));
  const std::string type = in.StringOr("type", "Slabs");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (type == "Slabs") {
    ROUSE_ASSIGN_OR_RETURN(NodeRequest request, DecodeRequest(in));
    return NodeMessage(std::move(request));
  }
  if (type == "Join") {
    ROUSE_ASSIGN_OR_RETURN(NodeJoin join, DecodeJoin(in));
    return NodeMessage(std::move(join));
  }
  return InvalidArgument("request.type: unknown value \"" + type +
                         "\", expected one of Slabs, Join");
}

Result<NodeAnswer> DecodeNodeAnswer(std::string_view text) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(text, "answer"));
  ROUSE_RETURN_IF_ERROR(WireStatus(body));
  json::Reader in(body, "answer");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kNodeProtocol, kNodeVersion));
  NodeAnswer answer{.memory = in.String("memory")};
  ROUSE_RETURN_IF_ERROR(in.status());
  return answer;
}

Result<NodeJoinAnswer> DecodeNodeJoinAnswer(std::string_view text) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(text, "answer"));
  ROUSE_RETURN_IF_ERROR(WireStatus(body));
  json::Reader in(body, "answer");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kNodeProtocol, kNodeVersion));
  const std::string type = in.String("type");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (type == "Seat") {
    ROUSE_ASSIGN_OR_RETURN(const memory::BroadcastSeat seat, DecodeSeat(in));
    return NodeJoinAnswer(seat);
  }
  if (type == "Wait") {
    const JoinWait wait{std::chrono::milliseconds(in.Int("askAgainMs", 1, kMaxWaitMs))};
    ROUSE_RETURN_IF_ERROR(in.status());
    return NodeJoinAnswer(wait);
  }
  if (type == "Pull") {
    JoinPull pull{in.String("reason")};
    ROUSE_RETURN_IF_ERROR(in.status());
    ROUSE_RETURN_IF_ERROR(CheckLength(pull.reason, kMaxReason, "answer.reason"));
    return NodeJoinAnswer(std::move(pull));
  }
  return InvalidArgument("answer.type: unknown value \"" + type +
                         "\", expected one of Wait, Pull, Seat");
}

bool IsNodeSocketName(std::string_view name) {
  return !name.empty() && name.size() <= 64 && name.front() != '.' &&
         name.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") ==
             std::string_view::npos;
}

}  // namespace rouse::transfer

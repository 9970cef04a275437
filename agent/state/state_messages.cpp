#include "agent/state/state_messages.h"

#include <algorithm>

#include "common/messages.h"
#include "common/protocol.h"
#include "common/sha256.h"

namespace rouse::agent {

std::uint64_t StateRead::bytes() const {
  std::uint64_t total = 0;
  for (const StatePiece& piece : pieces) total += piece.bytes;
  return total;
}

json::Json ToJson(const StateAnswer& answer) {
  json::Json out = {{"protocol", kStateProtocol},
                    {"version", kStateVersion},
                    {"standing", json::NameOf<StateStanding>(answer.standing, kStateStandings)},
                    {"decidedAtUs", answer.decided_at_us}};
  if (answer.bundle) out["bundle"] = ToJson(*answer.bundle);
  return out;
}

Result<StateAnswer> StateAnswerFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kStateProtocol, kStateVersion));
  StateAnswer answer{.standing = in.Enum<StateStanding>("standing", kStateStandings),
                     .decided_at_us = in.Int("decidedAtUs"),
                     .bundle = std::nullopt};
  if (in.status().ok() && (answer.standing == StateStanding::kHeld) != in.Has("bundle")) {
    in.Fail("bundle", "is there when it is held, and only then");
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  if (answer.standing == StateStanding::kHeld) {
    ROUSE_ASSIGN_OR_RETURN(answer.bundle, BundleFromJson(in.Object("bundle")));
  }
  return answer;
}

StatePiece ReadPiece(json::Reader& in) {
  StatePiece piece{.sha256 = in.String("sha256"),
                   .offset = static_cast<std::uint64_t>(
                       in.Int("offset", 0, static_cast<std::int64_t>(kMaxBundleFileBytes))),
                   .bytes = static_cast<std::uint64_t>(
                       in.Int("bytes", 1, static_cast<std::int64_t>(kMaxReadBytes)))};
  if (!IsSha256Hex(piece.sha256)) in.Fail("sha256", "expected 64 lower-case hex digits");
  return piece;
}

json::Json ToJson(const StateRead& read) {
  json::Json pieces = json::Json::array();
  for (const StatePiece& piece : read.pieces) {
    pieces.push_back({{"sha256", piece.sha256}, {"offset", piece.offset}, {"bytes", piece.bytes}});
  }
  return {{"protocol", kStateProtocol},
          {"version", kStateVersion},
          {"class", ToString(read.of)},
          {"fingerprint", read.fingerprint},
          {"pieces", std::move(pieces)}};
}

Result<StateRead> StateReadFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kStateProtocol, kStateVersion));
  StateRead read{.of = in.Enum<CacheClass>("class", kCacheClasses),
                 .fingerprint = in.String("fingerprint"),
                 .pieces = {}};
  read.pieces = in.Objects("pieces", kMaxReadPieces, ReadPiece);
  if (read.pieces.empty()) in.Fail("pieces", "is empty");
  if (!IsSha256Hex(read.fingerprint)) in.Fail("fingerprint", "expected 64 lower-case hex digits");
  if (read.bytes() > kMaxReadBytes) in.Fail("pieces", "add up to more than 4 MiB");
  ROUSE_RETURN_IF_ERROR(in.status());
  return read;
}

json::Json ToJson(const KeepRequest& request) {
  return {{"protocol", kStateProtocol},
          {"version", kStateVersion},
          {"pod", request.pod},
          {"class", ToString(request.of)},
          {"fingerprint", request.fingerprint},
          {"bytes", request.bytes},
          {"digest", request.digest},
          {"copies", request.copies},
          {"usedAtUs", request.used_at_us}};
}

Result<KeepRequest> KeepRequestFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kStateProtocol, kStateVersion));
  KeepRequest request{.pod = in.String("pod"),
                      .of = in.Enum<CacheClass>("class", kCacheClasses),
                      .fingerprint = in.String("fingerprint"),
                      .bytes = static_cast<std::uint64_t>(
                          in.Int("bytes", 0, static_cast<std::int64_t>(kMaxBundleBytes))),
                      .digest = in.String("digest"),
                      .copies = static_cast<std::uint32_t>(in.Int("copies", 1, kMaxStateCopies)),
                      .used_at_us = in.Int("usedAtUs")};
  for (const auto& [key, text] :
       {std::pair("fingerprint", &request.fingerprint), std::pair("digest", &request.digest)}) {
    if (!IsSha256Hex(*text)) in.Fail(key, "expected 64 lower-case hex digits");
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

json::Json ToJson(const KeepAnswer& answer) {
  return {{"protocol", kStateProtocol},
          {"version", kStateVersion},
          {"standing", json::NameOf<KeepStanding>(answer.standing, kKeepStandings)},
          {"copies", answer.copies},
          {"usedAtUs", answer.used_at_us}};
}

Result<KeepAnswer> KeepAnswerFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kStateProtocol, kStateVersion));
  const KeepAnswer answer{
      .standing = in.Enum<KeepStanding>("standing", kKeepStandings),
      .copies = static_cast<std::uint32_t>(in.Int("copies", 1, kMaxStateCopies)),
      .used_at_us = in.Int("usedAtUs")};
  ROUSE_RETURN_IF_ERROR(in.status());
  return answer;
}

std::vector<StateRead> PlanReads(CacheClass of, const std::string& fingerprint,
                                 const std::vector<MissingFile>& missing) {
  std::vector<StateRead> reads;
  std::uint64_t room = 0;
  for (const MissingFile& file : missing) {
    for (std::uint64_t at = file.have; at < file.bytes;) {
      if (room == 0 || reads.back().pieces.size() == kMaxReadPieces) {
        reads.push_back({.of = of, .fingerprint = fingerprint, .pieces = {}});
        room = kMaxReadBytes;
      }
      const std::uint64_t bytes = std::min(room, file.bytes - at);
      reads.back().pieces.push_back({.sha256 = file.sha256, .offset = at, .bytes = bytes});
      at += bytes;
      room -= bytes;
    }
  }
  return reads;
}

}  // namespace rouse::agent

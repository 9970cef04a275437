// What agents say to each other about bundles (docs/protocols.md §2, rouse-state 1). Pure.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "agent/state/bundle.h"

namespace rouse::agent {

inline constexpr std::string_view kStateProtocol = "rouse-state";
inline constexpr int kStateVersion = 1;

/// One answer carries so much at most.
inline constexpr std::uint64_t kMaxReadBytes = 4u << 20;
inline constexpr std::size_t kMaxReadPieces = 512;

/// How an agent stands to a bundle.
enum class StateStanding {
  kHeld,       ///< It has it.
  kCompiling,  ///< Its engine is making it, or will have.
  kHydrating,  ///< It is looking for it itself.
  kNone,       ///< It has none and will have none.
};
inline constexpr json::EnumName<StateStanding> kStateStandings[] = {
    {StateStanding::kHeld, "Held"},
    {StateStanding::kCompiling, "Compiling"},
    {StateStanding::kHydrating, "Hydrating"},
    {StateStanding::kNone, "None"}};

/// Answer to GET /v1/state/CLASS/FINGERPRINT.
struct StateAnswer {
  StateStanding standing = StateStanding::kNone;
  std::int64_t decided_at_us = 0;  ///< When the start of the answering instance was decided.
  std::optional<Bundle> bundle;    ///< When it is held.

  bool operator==(const StateAnswer&) const = default;
};

/// Bytes [offset, offset + bytes) of the file with this digest.
struct StatePiece {
  std::string sha256;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;

  bool operator==(const StatePiece&) const = default;
};

/// Body of POST /v1/state/read; the answer is the pieces' bytes, one after the other.
struct StateRead {
  CacheClass of = CacheClass::kMatched;
  std::string fingerprint;  ///< Of the bundle that the files are of.
  std::vector<StatePiece> pieces;

  std::uint64_t bytes() const;
  bool operator==(const StateRead&) const = default;
};

/// Body of POST /v1/state/keep: the sender holds this bundle and asks for a copy to be kept.
struct KeepRequest {
  std::string pod;  ///< The sender.
  CacheClass of = CacheClass::kMatched;
  std::string fingerprint;
  std::uint64_t bytes = 0;      ///< Of all files; with `digest` what placement.h ranks bundles by.
  std::string digest;           ///< SHA-256 of the bundle's canonical JSON.
  std::uint32_t copies = 0;     ///< That there are to be.
  std::int64_t used_at_us = 0;  ///< When an instance that it is made for was last known to live.

  bool operator==(const KeepRequest&) const = default;
};
enum class KeepStanding {
  kHeld,    ///< It has this bundle, or a better one of the fingerprint.
  kComing,  ///< It fetches it from the sender, or will come to have it.
};
inline constexpr json::EnumName<KeepStanding> kKeepStandings[] = {
    {KeepStanding::kHeld, "Held"}, {KeepStanding::kComing, "Coming"}};
struct KeepAnswer {
  KeepStanding standing = KeepStanding::kHeld;
  std::uint32_t copies = 0;     ///< As the answering agent knows; what is said later counts.
  std::int64_t used_at_us = 0;  ///< When that was said.

  bool operator==(const KeepAnswer&) const = default;
};

json::Json ToJson(const StateAnswer& answer);
json::Json ToJson(const StateRead& read);
json::Json ToJson(const KeepRequest& request);
json::Json ToJson(const KeepAnswer& answer);
Result<StateAnswer> StateAnswerFromJson(const json::Json& value);
Result<KeepRequest> KeepRequestFromJson(const json::Json& value);
Result<KeepAnswer> KeepAnswerFromJson(const json::Json& value);
/// Also refuses more pieces or bytes than one answer may carry.
Result<StateRead> StateReadFromJson(const json::Json& value);

/// What is still to be fetched of one file.
struct MissingFile {
  std::string sha256;
  std::uint64_t bytes = 0;
  std::uint64_t have = 0;  ///< Its first bytes, kept from before.
};

/// Cuts what is missing into reads, in order: each file's bytes are contiguous, and a file is
/// continued in the next read where one ends.
std::vector<StateRead> PlanReads(CacheClass of, const std::string& fingerprint,
                                 const std::vector<MissingFile>& missing);

}  // namespace rouse::agent

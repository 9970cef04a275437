#include "agent/state/bundle_fetch.h"

#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// One that is gone must not hold up the question to the others for long.
constexpr std::chrono::milliseconds kAskTimeout{2'000};
constexpr std::chrono::milliseconds kReadTimeout{30'000};
constexpr std::size_t kMaxKeepText = 64u << 10;

Result<std::string> ReadFrom(http::Client& peer, const StateRead& read, Clock::time_point until) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
  if (left.count() <= 0) return DeadlineExceeded("the bundle has not come in time");
  const auto limit = std::min(left, kReadTimeout);
  ROUSE_ASSIGN_OR_RETURN(http::Response answer,
                         peer.Send({.method = "POST",
                                    .target = "/v1/state/read",
                                    .headers = {{"Content-Type", "application/json"}},
                                    .body = json::Dump(ToJson(read)),
                                    .timeout = limit,
                                    .deadline = limit},
                                   kMaxReadBytes + 4096));
  if (answer.status != 200) return http::ToStatus(answer, "read files of a bundle");
  if (answer.body.size() != read.bytes()) {
    return DataLoss("the peer sent " + std::to_string(answer.body.size()) + " bytes of a bundle, " +
                    std::to_string(read.bytes()) + " were asked for");
  }
  return std::move(answer.body);
}

/// What is to be fetched, each content once.
std::vector<MissingFile> MissingOf(const StateStore& store, const Bundle& bundle) {
  std::vector<MissingFile> missing;
  std::set<std::string_view> seen;
  for (const BundleEntry& entry : bundle.entries) {
    if (entry.is_link() || !seen.insert(entry.sha256).second ||
        store.Has(entry.sha256, entry.bytes)) {
      continue;
    }
    const std::uint64_t have = store.PartBytes(entry.sha256);
    missing.push_back(
        {.sha256 = entry.sha256, .bytes = entry.bytes, .have = have <= entry.bytes ? have : 0});
  }
  return missing;
}

}  // namespace

Result<StateAnswer> AskForBundle(http::Client& peer, CacheClass of,
                                 const std::string& fingerprint) {
  ROUSE_ASSIGN_OR_RETURN(
      const http::Response answer,
      peer.Send({.target = "/v1/state/" + std::string(ToString(of)) + "/" + fingerprint,
                 .timeout = kAskTimeout,
                 .deadline = kAskTimeout},
                kMaxBundleText));
  if (answer.status != 200) return http::ToStatus(answer, "ask for a bundle");
  ROUSE_ASSIGN_OR_RETURN(const json::Json document,
                         json::Parse(answer.body, "state", kMaxBundleText));
  ROUSE_ASSIGN_OR_RETURN(StateAnswer state, StateAnswerFromJson(document));
  if (state.bundle && (state.bundle->of != of || state.bundle->fingerprint != fingerprint)) {
    return InvalidArgument("the peer answered with another bundle than was asked for");
  }
  return state;
}

std::optional<FoundBundle> FindBundle(const std::vector<Keeper>& order, CacheClass of,
                                      const std::string& fingerprint,
                                      const std::set<std::string>& without,
                                      const std::function<http::Client*(const Keeper&)>& dial) {
  for (const Keeper& keeper : order) {
    if (without.contains(keeper.pod)) continue;
    http::Client* const client = dial(keeper);
    if (client == nullptr) continue;
    auto answer = AskForBundle(*client, of, fingerprint);
    if (answer.ok() && answer->bundle) return FoundBundle{keeper, *std::move(answer->bundle)};
    if (answer.status().code() == StatusCode::kInvalidArgument) {
      log::Warning(
          "a keeper's bundle is refused",
          {{"keeper", keeper.pod}, {"class", ToString(of)}, {"error", answer.status().ToString()}});
    }
  }
  return std::nullopt;
}

Result<KeepAnswer> AskToKeep(http::Client& keeper, const KeepRequest& request) {
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         keeper.Send({.method = "POST",
                                      .target = "/v1/state/keep",
                                      .headers = {{"Content-Type", "application/json"}},
                                      .body = json::Dump(ToJson(request)),
                                      .timeout = kAskTimeout,
                                      .deadline = kAskTimeout},
                                     kMaxKeepText));
  if (answer.status != 200) return http::ToStatus(answer, "ask to keep a bundle");
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer.body, "keep", kMaxKeepText));
  return KeepAnswerFromJson(document);
}

FetchOutcome FetchBundle(http::Client& peer, const StateStore& store, const Bundle& bundle,
                         Clock::time_point until, const std::function<bool()>& cancelled) {
  FetchOutcome outcome;
  const std::vector<MissingFile> missing = MissingOf(store, bundle);
  // Reads come in the order of the files: what lies before the next one is whole.
  std::size_t whole = 0;
  const auto finish_before = [&](const std::string& next) {
    for (; whole < missing.size() && missing[whole].sha256 != next; ++whole) {
      ROUSE_RETURN_IF_ERROR(store.Finish(missing[whole].sha256, missing[whole].bytes));
    }
    return Status();
  };
  for (const StateRead& read : PlanReads(bundle.of, bundle.fingerprint, missing)) {
    if (cancelled()) {
      outcome.status = Status(StatusCode::kCancelled, "the fetch of a bundle was ended");
      return outcome;
    }
    const auto bytes = ReadFrom(peer, read, until);
    outcome.status = bytes.status();
    std::size_t at = 0;
    for (std::size_t i = 0; outcome.status.ok() && i < read.pieces.size(); ++i) {
      const StatePiece& piece = read.pieces[i];
      outcome.status = finish_before(piece.sha256);
      if (outcome.status.ok()) {
        outcome.status = store.Append(piece.sha256, piece.offset,
                                      std::string_view(*bytes).substr(at, piece.bytes));
      }
      at += piece.bytes;
    }
    if (!outcome.status.ok()) return outcome;
    outcome.bytes += at;
  }
  outcome.status = finish_before("");
  return outcome;
}

}  // namespace rouse::agent

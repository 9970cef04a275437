#include "agent/state/bundle.h"

#include <set>

#include "agent/state/state_messages.h"
#include "agent/tests/fuzz/harness.h"
#include "common/sha256.h"

namespace rouse::fuzz {
namespace {

using namespace agent;

void CheckBundle(const agent::Bundle& bundle) {
  Check(IsSha256Hex(bundle.fingerprint), "a fingerprint is one");
  Check(bundle.entries.size() <= kMaxBundleEntries && bundle.bytes() <= kMaxBundleBytes,
        "bounds hold");
  std::set<std::string> paths;
  for (const BundleEntry& entry : bundle.entries) {
    Check(paths.insert(entry.path).second, "no path is there twice");
    Check(!RootOf(bundle.of, entry.path).empty(), "every path is in a cache");
    Check(("/" + entry.path + "/").find("/../") == std::string::npos, "paths lead nowhere else");
    Check(entry.mode <= 0777 && entry.bytes <= kMaxBundleFileBytes, "bounds hold");
    Check(entry.is_link() != IsSha256Hex(entry.sha256), "a file has a digest, a link has none");
    Check(!entry.is_link() || entry.target.front() != '/', "links are relative");
  }
  for (const std::string& path : paths) {
    for (std::size_t at = path.find('/'); at != std::string::npos; at = path.find('/', at + 1)) {
      Check(!paths.contains(path.substr(0, at)), "nothing lies in a file or behind a link");
    }
  }
}

}  // namespace

void Bundle(std::string_view input) {
  const std::string_view kind = NextLine(input);
  const auto document = json::Parse(input, "bundle", 1u << 20);
  if (!document.ok()) return;
  if (kind == "bundle") {
    const auto bundle = BundleFromJson(*document);
    if (!bundle.ok())
      return Check(!bundle.status().message().empty(), "an error says what is wrong");
    CheckBundle(*bundle);
    const auto again = BundleFromJson(ToJson(*bundle));
    Check(again.ok() && *again == *bundle, "encoding and decoding change nothing");
  } else if (kind == "answer") {
    const auto answer = StateAnswerFromJson(*document);
    if (!answer.ok()) return;
    Check(answer->bundle.has_value() == (answer->standing == StateStanding::kHeld),
          "who holds a bundle shows it");
    const auto again = StateAnswerFromJson(ToJson(*answer));
    Check(again.ok() && *again == *answer, "encoding and decoding change nothing");
  } else if (kind == "keep") {
    const auto keep = KeepRequestFromJson(*document);
    if (!keep.ok()) return;
    Check(IsSha256Hex(keep->fingerprint) && IsSha256Hex(keep->digest), "digests are digests");
    Check(keep->copies >= 1 && keep->bytes <= kMaxBundleBytes, "bounds hold");
    const auto again = KeepRequestFromJson(ToJson(*keep));
    Check(again.ok() && *again == *keep, "encoding and decoding change nothing");
  } else if (kind == "kept") {
    const auto kept = KeepAnswerFromJson(*document);
    if (!kept.ok()) return;
    const auto again = KeepAnswerFromJson(ToJson(*kept));
    Check(again.ok() && *again == *kept, "encoding and decoding change nothing");
  } else if (kind == "read") {
    const auto read = StateReadFromJson(*document);
    if (!read.ok()) return;
    Check(read->bytes() <= kMaxReadBytes && read->pieces.size() <= kMaxReadPieces, "bounds hold");
    for (const StatePiece& piece : read->pieces)
      Check(IsSha256Hex(piece.sha256), "files are digests");
    const auto again = StateReadFromJson(ToJson(*read));
    Check(again.ok() && *again == *read, "encoding and decoding change nothing");
  }
}

}  // namespace rouse::fuzz

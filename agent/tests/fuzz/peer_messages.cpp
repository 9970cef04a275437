#include "common/peer_messages.h"
#include "common/messages.h"

#include <set>

#include "agent/tests/fuzz/harness.h"
#include "agent/transfer/node_protocol.h"
#include "agent/transfer/source.h"

namespace rouse::fuzz {
namespace {

constexpr std::size_t kMaxMessageText = 1u << 20;

/// What `decode` makes of `text`. What was decoded is the same after it was sent on.
template <typename Decode>
auto Decoded(std::string_view text, Decode decode)
    -> std::optional<std::decay_t<decltype(*decode(std::declval<const json::Json&>()))>> {
  const auto document = json::Parse(text, "message", kMaxMessageText);
  if (!document.ok()) return std::nullopt;
  auto message = decode(*document);
  if (!message.ok()) {
    Check(!message.status().message().empty(), "an error says what is wrong");
    return std::nullopt;
  }
  const auto again = decode(ToJson(*message));
  Check(again.ok() && *again == *message, "encoding and decoding change nothing");
  return *std::move(message);
}

void Open(std::string_view text) {
  const auto opened = Decoded(text, OpenResponseFromJson);
  if (!opened) return;
  Check(opened->lease_ms >= kMinLeaseMs, "a lease can be renewed in time");
  std::set<std::uint32_t> ranks;
  for (const RemoteRank& rank : opened->ranks) {
    Check(ranks.insert(rank.manifest.rank).second, "no rank is there twice");
    Check(rank.manifest.chunk_digests.size() ==
              ChunkCount(rank.manifest.arena_bytes, rank.manifest.chunk_bytes),
          "every chunk has its digest");
    std::uint64_t total = 0;
    for (const RemoteSlab& slab : rank.slabs) {
      Check(slab.address + slab.bytes >= slab.address, "a slab fits an address space");
      total += slab.bytes;
    }
    Check(total == rank.manifest.arena_bytes, "slabs add up to the arena");
    const Status checked = transfer::CheckSource({"peer", opened->worker_address, rank});
    Check(checked.ok() || checked.message().find("peer") != std::string::npos,
          "a refusal names the source");
  }
}

void Staged(std::string_view text) {
  const auto document = json::Parse(text, "message", kMaxMessageText);
  if (!document.ok()) return;
  const auto slab = StagedFromJson(*document);
  if (!slab.ok()) return;
  Check(!slab->rkey.empty() && slab->bytes > 0, "what is staged can be read");
  Check(slab->address + slab->bytes >= slab->address, "a slab fits an address space");
  const auto again = StagedFromJson(StagedToJson(*slab));
  Check(again.ok() && *again == *slab, "encoding and decoding change nothing");
}

void Files(std::string_view text) {
  const auto files = Decoded(text, ModelFilesFromJson);
  if (!files) return;
  std::uint64_t total = 0;
  std::set<std::string> paths;
  for (const ModelFile& file : files->files) {
    Check(paths.insert(file.path).second, "no path is there twice");
    Check(!file.path.empty() && file.path.front() != '/', "paths are relative");
    Check(("/" + file.path + "/").find("/../") == std::string::npos, "paths lead nowhere else");
    Check(file.sha256.size() == 64, "a digest has 64 digits");
    total += file.bytes;
  }
  Check(files->files.size() <= kMaxModelFiles && total <= kMaxModelFilesBytes, "bounds hold");
}

void NodeMessage(std::string_view text) {
  const auto message = transfer::DecodeNodeMessage(text);
  if (!message.ok()) {
    Check(!message.status().message().empty(), "an error says what is wrong");
    return;
  }
  if (const auto* request = std::get_if<transfer::NodeRequest>(&*message)) {
    Check(request->count >= 1 && request->count <= 64, "an answer can carry what is asked for");
  }
  const json::Json body = std::visit([](const auto& one) { return ToJson(one); }, *message);
  const auto again = transfer::DecodeNodeMessage(json::Dump(body));
  Check(again.ok() && again->index() == message->index() &&
            std::visit([](const auto& one) { return ToJson(one); }, *again) == body,
        "encoding and decoding change nothing");
}

void NodeAnswer(std::string_view text) {
  const auto answer = transfer::DecodeNodeAnswer(text);
  if (!answer.ok()) {
    Check(answer.status().code() != StatusCode::kOk, "what is no answer is an error");
    return;
  }
  const auto again = transfer::DecodeNodeAnswer(json::Dump(ToJson(*answer)));
  Check(again.ok() && again->memory == answer->memory, "encoding and decoding change nothing");
}

}  // namespace

void PeerMessages(std::string_view input) {
  const std::string_view kind = NextLine(input);
  if (kind == "open") Open(input);
  if (kind == "files") Files(input);
  if (kind == "lease") (void)Decoded(input, LeaseRequestFromJson);
  if (kind == "stage") (void)Decoded(input, StageRequestFromJson);
  if (kind == "staged") Staged(input);
  if (kind == "ask") (void)Decoded(input, OpenRequestFromJson);
  if (kind == "report") (void)Decoded(input, AgentReportFromJson);
  if (kind == "assignment") (void)Decoded(input, AssignmentFromJson);
  if (kind == "node-request") NodeMessage(input);
  if (kind == "node-answer") NodeAnswer(input);
}

}  // namespace rouse::fuzz

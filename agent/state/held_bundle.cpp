#include "agent/state/held_bundle.h"

#include <algorithm>

#include "common/sha256.h"

namespace rouse::agent {

std::shared_ptr<const HeldBundle> MakeHeld(Bundle bundle) {
  auto held = std::make_shared<HeldBundle>();
  for (const BundleEntry& entry : bundle.entries) {
    if (!entry.is_link()) held->files[entry.sha256] = entry.bytes;
  }
  held->rank = {.bytes = bundle.bytes(), .digest = Sha256Hex(json::Canonical(ToJson(bundle)))};
  held->bundle = std::move(bundle);
  return held;
}

bool IsWhole(const StateStore& store, const HeldBundle& held) {
  return std::all_of(held.files.begin(), held.files.end(),
                     [&](const auto& file) { return store.Has(file.first, file.second); });
}

Result<std::string> ReadPieces(const StateStore& store, const HeldBundle& held,
                               const StateRead& read) {
  for (const StatePiece& piece : read.pieces) {
    const auto file = held.files.find(piece.sha256);
    if (file == held.files.end()) {
      return NotFound("file " + piece.sha256 + " is not of that bundle (any more)");
    }
    if (piece.offset + piece.bytes > file->second) {
      return InvalidArgument("file " + piece.sha256 + " has " + std::to_string(file->second) +
                             " bytes");
    }
  }
  std::string out;
  out.reserve(read.bytes());
  for (const StatePiece& piece : read.pieces) {
    ROUSE_ASSIGN_OR_RETURN(const std::string bytes,
                           store.Read(piece.sha256, piece.offset, piece.bytes));
    out += bytes;
  }
  return out;
}

}  // namespace rouse::agent

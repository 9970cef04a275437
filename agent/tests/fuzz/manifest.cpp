#include "common/manifest.h"

#include "agent/memory/chunk_digest.h"
#include "agent/tests/fuzz/harness.h"

namespace rouse::fuzz {
namespace {

__extension__ using Wide = unsigned __int128;  // nothing in a manifest overflows it

}  // namespace

void Manifest(std::string_view input) {
  const auto document = json::Parse(input, "manifest");
  if (!document.ok()) return;
  const auto manifest = ManifestFromJson(*document, "manifest");
  if (!manifest.ok()) {
    Check(!manifest.status().message().empty(), "an error says what is wrong");
    return;
  }
  std::uint64_t free_from = 0;
  for (const Allocation& allocation : manifest->allocations) {
    Check(allocation.offset >= free_from, "allocations are in order and do not overlap");
    Check(allocation.offset % kAllocationAlignment == 0, "allocations are aligned");
    free_from = allocation.offset + allocation.bytes;
    Check(free_from <= manifest->arena_bytes, "allocations are inside the arena");
  }
  for (const Tensor& tensor : manifest->tensors) {
    Check(tensor.allocation < manifest->allocations.size(), "a tensor's allocation is there");
    Check(tensor.shape.size() == tensor.stride.size(), "shape and stride fit");
    Wide last = 0;
    bool empty = false;
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      Check(tensor.shape[i] >= 0 && tensor.stride[i] >= 0, "nothing is negative");
      empty = empty || tensor.shape[i] == 0;
      if (!empty) {
        last += static_cast<Wide>(tensor.shape[i] - 1) * static_cast<Wide>(tensor.stride[i]);
      }
    }
    const Wide end = empty ? tensor.offset : tensor.offset + (last + 1) * DtypeBytes(tensor.dtype);
    Check(end <= manifest->allocations[tensor.allocation].bytes, "a tensor is in its allocation");
  }
  Check(memory::CheckManifest(*manifest, manifest->arena_bytes, false).ok(), "it fits its arena");
  const auto text = json::Dump(ToJson(*manifest));
  const auto again = json::Parse(text, "manifest", 1u << 30);
  Check(again.ok(), "what was decoded can be encoded");
  const auto same = ManifestFromJson(*again, "manifest");
  Check(same.ok() && *same == *manifest, "encoding and decoding change nothing");
}

}  // namespace rouse::fuzz

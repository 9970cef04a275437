// A checkpoint: one or many safetensors files, and the index that says which tensor is in which.
//
// Pure. What is read from the files comes in as values; checkpoint_files.h does the reading.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/storage/safetensors.h"
#include "common/result.h"

namespace rouse::storage {

inline constexpr std::string_view kIndexFile = "model.safetensors.index.json";
inline constexpr std::string_view kSingleFile = "model.safetensors";
inline constexpr std::size_t kMaxShards = 10'000;

/// What an index file says: the file of each tensor, by the tensor's name.
using ShardIndex = std::map<std::string, std::string>;

struct Shard {
  std::string file;  ///< A name in the checkpoint's folder, without any slash.
  std::uint64_t file_bytes = 0;
  ShardHeader header;

  bool operator==(const Shard&) const = default;
};

struct Checkpoint {
  std::vector<Shard> shards;  ///< In the order of their names.

  std::uint64_t data_bytes() const;
  std::size_t tensor_count() const;
};

/// Decodes an index. InvalidArgument for a name twice, too many names, and for files that are no
/// plain name ending in .safetensors (an index must not lead out of the folder).
Result<ShardIndex> DecodeIndex(std::string_view text, std::string_view file = kIndexFile);

/// The files to read, in order, of a folder that holds `files`: those that the index names if there
/// is one, else model.safetensors, else every *.safetensors. NotFound when there is none, or when
/// one that the index names is missing.
Result<std::vector<std::string>> ChooseShards(const std::optional<ShardIndex>& index,
                                              const std::vector<std::string>& files);

/// Puts decoded shards together. InvalidArgument when a tensor is in two of them, or not where the
/// index says. A tensor that the index does not mention is kept, as other readers do.
Result<Checkpoint> MakeCheckpoint(std::vector<Shard> shards,
                                  const std::optional<ShardIndex>& index);

/// Which tensors there are, as JSON that engines understand: {"NAME": {"dtype": "BF16", "shape":
/// [2, 3]}, ...}, names in order.
std::string DescribeTensors(const Checkpoint& checkpoint);

}  // namespace rouse::storage

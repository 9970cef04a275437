// Which chunk to ask of a given source next. Pure; not thread-safe.
//
// Rarest first among the chunks that the source has and nobody was asked for (Cohen: "Incentives
// build robustness in BitTorrent", 2003): what few of the known sources have is what others will
// want from us, and what is lost for longest if its holder dies. Chunks that are equally rare are
// taken in an order that the seed decides, so that targets which start together ask for different
// ones. A chunk that must be asked for again goes before all others, and not to a source that sent
// it damaged as long as another one has it.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "agent/transfer/chunk_set.h"
#include "agent/transfer/pull_actions.h"

namespace rouse::transfer {

class ChunkPicker {
 public:
  /// All chunks are wanted. Without a seed equally rare ones are taken in ascending order.
  ChunkPicker(std::uint64_t chunks, std::optional<std::uint64_t> seed);

  /// Ids are given in order, from 0.
  SourceId AddSource(bool complete);
  /// The source has at least these chunks. One that was told before is not forgotten.
  void Offer(SourceId source, std::span<const std::uint64_t> words);
  /// The source is never asked again; Take returns nothing for it.
  void RemoveSource(SourceId source);

  /// How many wanted chunks the source has.
  std::uint64_t Offers(SourceId source) const { return sources_[source].offers; }
  bool Has(SourceId source, std::uint64_t chunk) const;
  /// Whether some chunk must be asked for again.
  bool AnyUrgent() const { return urgent_count_ > 0; }

  /// Picks a chunk to ask of the source, which is then no longer wanted; with `urgent_only` one
  /// that must be asked for again.
  std::optional<std::uint64_t> Take(SourceId source, bool urgent_only);
  /// A chunk that nobody has been asked for is not wanted.
  void Drop(std::uint64_t chunk) { SetWanted(position_of_[chunk], false); }
  /// A chunk that was taken is wanted again, before others.
  void Return(std::uint64_t chunk);
  /// The same, because the source sent it damaged.
  void ReturnDamaged(std::uint64_t chunk, SourceId source);

 private:
  // Chunks that this many sources have or more are all the same to us.
  static constexpr std::uint32_t kCommon = 12;

  struct Source {
    ChunkSet has_chunks;     // by chunk number, as it was told
    ChunkSet has_positions;  // the same chunks by position
    std::uint64_t offers = 0;
    bool alive = true;
  };

  bool Wanted(std::uint64_t position) const { return wanted_.Test(position); }
  std::size_t Level(std::uint64_t position) const {
    return std::min<std::uint32_t>(holders_[position], kCommon);
  }
  void SetWanted(std::uint64_t position, bool wanted);
  void SetHolders(std::uint64_t position, int change);
  bool Barred(std::uint64_t chunk, SourceId source) const;

  // A chunk's position is its place in the order; sets are by position but where said otherwise, so
  // that the first common bit of two is the next chunk.
  std::vector<std::uint64_t> chunk_at_;
  std::vector<std::uint64_t> position_of_;
  std::vector<Source> sources_;
  std::vector<std::uint32_t> holders_;  // live sources that have it
  ChunkSet wanted_;
  ChunkSet urgent_;  // wanted, and asked for before
  std::uint64_t urgent_count_ = 0;
  // Wanted and not urgent, by the number of holders.
  std::array<ChunkSet, kCommon + 1> by_rarity_;
  std::array<std::uint64_t, kCommon + 1> rarity_count_{};
  std::vector<std::pair<std::uint64_t, SourceId>> damaged_;  // chunk, who sent it so
};

}  // namespace rouse::transfer

#include "agent/transfer/chunk_picker.h"

#include <algorithm>
#include <numeric>

#include "common/seeded.h"

namespace rouse::transfer {

ChunkPicker::ChunkPicker(std::uint64_t chunks, std::optional<std::uint64_t> seed)
    : chunk_at_(chunks),
      position_of_(chunks),
      holders_(chunks, 0),
      wanted_(chunks, true),
      urgent_(chunks) {
  std::iota(chunk_at_.begin(), chunk_at_.end(), 0);
  if (seed) Shuffle(chunk_at_, *seed);
  for (std::uint64_t i = 0; i < chunks; ++i) position_of_[chunk_at_[i]] = i;
  by_rarity_.fill(ChunkSet(chunks));
  by_rarity_[0] = ChunkSet(chunks, true);
  rarity_count_[0] = chunks;
}

SourceId ChunkPicker::AddSource(bool complete) {
  const std::uint64_t chunks = chunk_at_.size();
  const auto id = static_cast<SourceId>(sources_.size());
  sources_.push_back({.has_chunks = ChunkSet(chunks), .has_positions = ChunkSet(chunks)});
  if (complete) Offer(id, ChunkSet(chunks, true).words());
  return id;
}

void ChunkPicker::Offer(SourceId id, std::span<const std::uint64_t> words) {
  Source& source = sources_[id];
  if (!source.alive) return;
  source.has_chunks.Merge(words, [&](std::uint64_t chunk) {
    const std::uint64_t position = position_of_[chunk];
    source.has_positions.Set(position);
    SetHolders(position, +1);
    if (Wanted(position)) ++source.offers;
  });
}

void ChunkPicker::RemoveSource(SourceId id) {
  Source& source = sources_[id];
  if (!source.alive) return;
  source.has_positions.ForEach([&](std::uint64_t position) { SetHolders(position, -1); });
  source.alive = false;
  source.offers = 0;
}

bool ChunkPicker::Has(SourceId source, std::uint64_t chunk) const {
  return sources_[source].has_chunks.Test(chunk);
}

std::optional<std::uint64_t> ChunkPicker::Take(SourceId id, bool urgent_only) {
  const Source& source = sources_[id];
  if (!source.alive || source.offers == 0) return std::nullopt;
  std::optional<std::uint64_t> position;
  if (urgent_count_ > 0) {
    position = urgent_.FirstCommon(source.has_positions,
                                   [&](std::uint64_t i) { return !Barred(chunk_at_[i], id); });
  }
  for (std::size_t level = 1; level <= kCommon && !position && !urgent_only; ++level) {
    if (rarity_count_[level] == 0) continue;
    position = by_rarity_[level].FirstCommon(source.has_positions, [](auto) { return true; });
  }
  if (!position) return std::nullopt;
  SetWanted(*position, false);
  return chunk_at_[*position];
}

void ChunkPicker::Return(std::uint64_t chunk) {
  SetWanted(position_of_[chunk], true);
}

void ChunkPicker::ReturnDamaged(std::uint64_t chunk, SourceId source) {
  if (std::find(damaged_.begin(), damaged_.end(), std::pair(chunk, source)) == damaged_.end()) {
    damaged_.emplace_back(chunk, source);
  }
  Return(chunk);
}

// A chunk that becomes wanted has been asked for before: only the constructor knows fresh ones.
void ChunkPicker::SetWanted(std::uint64_t position, bool wanted) {
  if (wanted) {
    wanted_.Set(position);
    urgent_.Set(position);
    ++urgent_count_;
  } else {
    wanted_.Clear(position);
    if (urgent_.Test(position)) {
      urgent_.Clear(position);
      --urgent_count_;
    } else {
      by_rarity_[Level(position)].Clear(position);
      --rarity_count_[Level(position)];
    }
  }
  for (Source& source : sources_) {
    if (source.alive && source.has_positions.Test(position)) {
      wanted ? ++source.offers : --source.offers;
    }
  }
}

void ChunkPicker::SetHolders(std::uint64_t position, int change) {
  const bool listed = Wanted(position) && !urgent_.Test(position);
  const std::size_t before = Level(position);
  holders_[position] += static_cast<std::uint32_t>(change);
  const std::size_t after = Level(position);
  if (!listed || before == after) return;
  by_rarity_[before].Clear(position);
  --rarity_count_[before];
  by_rarity_[after].Set(position);
  ++rarity_count_[after];
}

// Whether the source sent the chunk damaged while another has it that did not.
bool ChunkPicker::Barred(std::uint64_t chunk, SourceId id) const {
  const auto sent_damaged = [&](SourceId source) {
    return std::find(damaged_.begin(), damaged_.end(), std::pair(chunk, source)) != damaged_.end();
  };
  if (!sent_damaged(id)) return false;
  for (SourceId other = 0; other < sources_.size(); ++other) {
    if (sources_[other].alive && Has(other, chunk) && !sent_damaged(other)) return true;
  }
  return false;
}

}  // namespace rouse::transfer

#include "agent/memory/arena.h"

#include <algorithm>

#include "common/round_up.h"

namespace rouse::memory {
namespace {

constexpr std::uint64_t kMaxSlabBytes = std::uint64_t{4} << 30;
constexpr std::uint64_t kMaxArenaBytes = std::uint64_t{1} << 44;  // 16 TiB, as in the manifest

Status Check(const ArenaOptions& options) {
  if (options.bytes == 0 || options.bytes > kMaxArenaBytes) {
    return InvalidArgument(std::to_string(options.bytes) + " bytes is not between 1 and " +
                           std::to_string(kMaxArenaBytes));
  }
  const std::uint64_t granularity = options.memory->granularity();
  if (options.slab_bytes == 0 || options.slab_bytes > kMaxSlabBytes ||
      options.slab_bytes % granularity != 0) {
    return InvalidArgument("slabs of " + std::to_string(options.slab_bytes) +
                           " bytes; they must be a multiple of " + std::to_string(granularity) +
                           ", at most " + std::to_string(kMaxSlabBytes));
  }
  return {};
}

std::string What(const char* verb, const ArenaOptions& options) {
  return std::string(verb) + " arena " + options.name + " in memory of " + options.memory->name();
}

}  // namespace

Arena::Arena(std::byte* base, std::uint64_t reserved, const ArenaOptions& options)
    : memory_(options.memory),
      base_(base),
      reserved_(reserved),
      bytes_(options.bytes),
      slab_bytes_(options.slab_bytes) {}

Arena::~Arena() {
  for (std::size_t i = 0; i < slabs_.size(); ++i) slabs_[i]->UnmapAt(base_ + i * slab_bytes_);
  memory_->Free(base_, reserved_);
}

Result<std::unique_ptr<Arena>> Arena::Reserve(const ArenaOptions& options) {
  ROUSE_RETURN_IF_ERROR(Check(options));
  const std::uint64_t reserved = RoundUp(options.bytes, options.memory->granularity());
  ROUSE_ASSIGN_OR_RETURN(std::byte* const base, options.memory->Reserve(reserved));
  return std::unique_ptr<Arena>(new Arena(base, reserved, options));
}

Result<std::unique_ptr<Arena>> Arena::Create(const ArenaOptions& options) {
  const std::string what = What("create", options);
  auto reserved = Reserve(options);
  if (!reserved.ok()) return reserved.status().WithContext(what);
  std::unique_ptr<Arena> arena = *std::move(reserved);
  for (std::uint64_t offset = 0; offset < options.bytes; offset += options.slab_bytes) {
    const std::uint64_t bytes = std::min(options.slab_bytes, options.bytes - offset);
    ROUSE_RETURN_IF_ERROR(arena
                              ->AddSlab(options.memory->Create(
                                  bytes, options.name + "." + std::to_string(arena->slabs_.size())))
                              .WithContext(what));
  }
  if (options.populate) {
    ROUSE_RETURN_IF_ERROR(
        options.memory->Populate(arena->base_, arena->reserved_, options.populate_threads)
            .WithContext(what));
  }
  return arena;
}

Result<std::unique_ptr<Arena>> Arena::Import(const ArenaOptions& options,
                                             std::vector<OwnedFd> fds) {
  const std::string what = What("import", options);
  auto reserved = Reserve(options);
  if (!reserved.ok()) return reserved.status().WithContext(what);
  std::unique_ptr<Arena> arena = *std::move(reserved);
  const std::uint64_t count = RoundUp(options.bytes, options.slab_bytes) / options.slab_bytes;
  if (fds.size() != count) {
    return InvalidArgument(what + ": " + std::to_string(fds.size()) + " slabs, expected " +
                           std::to_string(count));
  }
  for (OwnedFd& fd : fds) {
    const std::uint64_t offset = arena->slabs_.size() * options.slab_bytes;
    const std::uint64_t bytes = std::min(options.slab_bytes, options.bytes - offset);
    ROUSE_RETURN_IF_ERROR(
        arena->AddSlab(options.memory->Import(std::move(fd), bytes)).WithContext(what));
  }
  return arena;
}

Status Arena::AddSlab(Result<std::unique_ptr<Slab>> slab) {
  const std::string which = "slab " + std::to_string(slabs_.size());
  if (!slab.ok()) return slab.status().WithContext(which);
  ROUSE_RETURN_IF_ERROR((*slab)->MapAt(base_ + slabs_.size() * slab_bytes_).WithContext(which));
  slabs_.push_back(*std::move(slab));
  return {};
}

std::vector<std::uint64_t> Arena::SlabBytes() const {
  std::vector<std::uint64_t> sizes;
  for (const auto& slab : slabs_) sizes.push_back(slab->bytes());
  return sizes;
}

std::span<std::byte> Arena::SlabSpan(std::size_t index) const {
  return {base_ + index * slab_bytes_, slabs_[index]->bytes()};
}

Status Arena::Seal() {
  for (const auto& slab : slabs_) ROUSE_RETURN_IF_ERROR(slab->Seal());
  sealed_ = true;
  return {};
}

}  // namespace rouse::memory

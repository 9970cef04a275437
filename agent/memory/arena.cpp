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
      slab_bytes_(options.slab_bytes),
      name_(options.name) {}

Arena::~Arena() {
  for (std::size_t i = 0; i < slabs_.size(); ++i) slabs_[i]->UnmapAt(base_ + i * slab_bytes_);
  memory_->Free(base_, reserved_);
}

Result<std::unique_ptr<Arena>> Arena::Prepare(const ArenaOptions& options) {
  const std::string what = What("reserve addresses of", options);
  ROUSE_RETURN_IF_ERROR(Check(options).WithContext(what));
  const std::uint64_t reserved = RoundUp(options.bytes, options.memory->granularity());
  auto base = options.memory->Reserve(reserved);
  if (!base.ok()) return base.status().WithContext(what);
  return std::unique_ptr<Arena>(new Arena(*base, reserved, options));
}

Result<std::unique_ptr<Arena>> Arena::Create(const ArenaOptions& options) {
  ROUSE_ASSIGN_OR_RETURN(std::unique_ptr<Arena> arena, Prepare(options));
  const std::string what = What("create", options);
  ROUSE_RETURN_IF_ERROR(arena->MakeSlabs(arena->slab_count()).WithContext(what));
  if (options.populate) {
    ROUSE_RETURN_IF_ERROR(
        options.memory->Populate(arena->base_, arena->reserved_, options.populate_threads)
            .WithContext(what));
  }
  return arena;
}

Status Arena::MakeSlabs(std::size_t count) {
  while (slabs_.size() < std::min(count, slab_count())) {
    const std::size_t index = slabs_.size();
    ROUSE_RETURN_IF_ERROR(
        AddSlab(memory_->Create(BytesOf(index), name_ + "." + std::to_string(index))));
  }
  return {};
}

std::uint64_t Arena::BytesOf(std::size_t slab) const {
  return std::min(slab_bytes_, bytes_ - slab * slab_bytes_);
}

Result<std::unique_ptr<Arena>> Arena::Import(const ArenaOptions& options,
                                             std::vector<OwnedFd> fds) {
  const std::string what = What("import", options);
  ROUSE_ASSIGN_OR_RETURN(std::unique_ptr<Arena> arena, Prepare(options));
  if (fds.size() != arena->slab_count()) {
    return InvalidArgument(what + ": " + std::to_string(fds.size()) + " slabs, expected " +
                           std::to_string(arena->slab_count()));
  }
  for (OwnedFd& fd : fds) {
    const std::uint64_t bytes = arena->BytesOf(arena->slabs_.size());
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
  for (std::size_t i = 0; i < slab_count(); ++i) sizes.push_back(BytesOf(i));
  return sizes;
}

std::span<std::byte> Arena::SlabSpan(std::size_t index) const {
  return {base_ + index * slab_bytes_, BytesOf(index)};
}

Status Arena::Seal() {
  for (const auto& slab : slabs_) ROUSE_RETURN_IF_ERROR(slab->Seal());
  sealed_ = true;
  return {};
}

}  // namespace rouse::memory

#include "agent/transfer/availability.h"

#include <atomic>
#include <span>

namespace rouse::transfer {
namespace {

using Word = std::uint64_t;
static_assert(std::atomic_ref<Word>::is_always_lock_free);

std::span<Word> WordsOf(memory::Arena& memory) {
  return {reinterpret_cast<Word*>(memory.span().data()), memory.bytes() / sizeof(Word)};
}

}  // namespace

Result<std::shared_ptr<Availability>> Availability::Create(std::uint64_t chunks) {
  const std::uint64_t bytes = (chunks + 63) / 64 * sizeof(Word);
  const std::uint64_t page = memory::HostMemory()->granularity();
  ROUSE_ASSIGN_OR_RETURN(auto memory,
                         memory::Arena::Create({.bytes = bytes,
                                                .slab_bytes = (bytes + page - 1) / page * page,
                                                .name = "rouse-availability",
                                                .populate = true}));
  // Not sealed: an RDMA device registers only what is mapped to be written, and the descriptor goes
  // to no one but our own source process.
  return std::shared_ptr<Availability>(new Availability(std::move(memory)));
}

void Availability::Set(std::uint64_t chunk) {
  std::atomic_ref(WordsOf(*memory_)[chunk / 64])
      .fetch_or(Word{1} << (chunk % 64), std::memory_order_release);
}

std::vector<std::uint64_t> Availability::Words() const {
  std::vector<std::uint64_t> words;
  for (Word& word : WordsOf(*memory_)) {
    words.push_back(std::atomic_ref(word).load(std::memory_order_acquire));
  }
  return words;
}

}  // namespace rouse::transfer

// A set of chunk numbers (or positions) as bits of 64-bit words: bit i of word i / 64. The form in
// which availability travels.

#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace rouse::transfer {

class ChunkSet {
 public:
  ChunkSet() = default;
  explicit ChunkSet(std::uint64_t size, bool full = false)
      : size_(size), words_((size + 63) / 64, full ? ~std::uint64_t{0} : 0) {
    if (full && size % 64 != 0) words_.back() = (std::uint64_t{1} << (size % 64)) - 1;
  }

  std::uint64_t size() const { return size_; }
  std::span<const std::uint64_t> words() const { return words_; }

  bool Test(std::uint64_t i) const { return (words_[i / 64] >> (i % 64) & 1) != 0; }
  void Set(std::uint64_t i) { words_[i / 64] |= std::uint64_t{1} << (i % 64); }
  void Clear(std::uint64_t i) { words_[i / 64] &= ~(std::uint64_t{1} << (i % 64)); }

  std::uint64_t Count() const {
    std::uint64_t count = 0;
    for (const std::uint64_t word : words_)
      count += static_cast<std::uint64_t>(std::popcount(word));
    return count;
  }

  /// Adds `words` (missing ones count as zero, bits beyond size() as absent), and calls `on_new`
  /// with each member that was not one before.
  template <typename F>
  void Merge(std::span<const std::uint64_t> words, F on_new) {
    for (std::size_t w = 0; w < std::min(words.size(), words_.size()); ++w) {
      std::uint64_t fresh = words[w] & ~words_[w];
      if (w + 1 == words_.size() && size_ % 64 != 0) {
        fresh &= (std::uint64_t{1} << (size_ % 64)) - 1;
      }
      words_[w] |= fresh;
      for (; fresh != 0; fresh &= fresh - 1) {
        on_new(w * 64 + static_cast<std::uint64_t>(std::countr_zero(fresh)));
      }
    }
  }

  /// Calls `visit` with each member, ascending.
  template <typename F>
  void ForEach(F visit) const {
    for (std::size_t w = 0; w < words_.size(); ++w) {
      for (std::uint64_t word = words_[w]; word != 0; word &= word - 1) {
        visit(w * 64 + static_cast<std::uint64_t>(std::countr_zero(word)));
      }
    }
  }

  /// The least member of both sets for which `accept` is true. Requires equal sizes.
  template <typename F>
  std::optional<std::uint64_t> FirstCommon(const ChunkSet& other, F accept) const {
    for (std::size_t w = 0; w < words_.size(); ++w) {
      for (std::uint64_t word = words_[w] & other.words_[w]; word != 0; word &= word - 1) {
        const std::uint64_t i = w * 64 + static_cast<std::uint64_t>(std::countr_zero(word));
        if (accept(i)) return i;
      }
    }
    return std::nullopt;
  }

 private:
  std::uint64_t size_ = 0;
  std::vector<std::uint64_t> words_;
};

}  // namespace rouse::transfer

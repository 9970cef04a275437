// What arrives from others, decoded under a fuzzer (`make fuzz`) and from the kept seeds (a test).
//
// Each function takes any bytes, returns when they were handled as they should be, and aborts when
// they were not: an answer that breaks what its decoder promises is as much a find as a crash.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace rouse::fuzz {

/// A weight manifest, as text.
void Manifest(std::string_view input);

/// A checkpoint: the first line is its index (or empty), every further one a shard: the file's size
/// in decimal, a blank, the header. The first 8 bytes are tried as a header's length, too.
void Safetensors(std::string_view input);

/// A conversation on the engine socket. The first line says what the agent offers (see there), each
/// further one is a message, after one digit: the number of descriptors that came with it.
void EngineSocket(std::string_view input);

/// What agents and the operator say to each other. The first line names the message (see there),
/// the rest is its text.
void PeerMessages(std::string_view input);

/// A bundle of compile caches, or what agents say to each other about one. The first line names
/// which (see there), the rest is its text.
void Bundle(std::string_view input);

inline void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

/// The text up to the next line's end, which is taken off `rest`.
inline std::string_view NextLine(std::string_view& rest) {
  const std::size_t end = rest.find('\n');
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return line;
}

}  // namespace rouse::fuzz

// How many seeds a property test tries.
#pragma once

namespace rouse {

// Of a test with one thread, in which ThreadSanitizer can find nothing: a tenth of them under it,
// at least one; a quarter under AddressSanitizer, which makes such a test ten times as long. The
// others try them all.
constexpr unsigned Seeds(unsigned all) {
#if defined(__SANITIZE_THREAD__)
  return (all + 9) / 10;
#elif defined(__SANITIZE_ADDRESS__)
  return (all + 3) / 4;
#else
  return all;
#endif
}

}  // namespace rouse

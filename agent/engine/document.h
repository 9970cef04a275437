// Documents that travel as a memfd beside a message, because they may be larger than one.
//
// Threads: any. A document that arrives comes from an engine and may be anything.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "agent/memory/owned_fd.h"
#include "common/result.h"

namespace rouse::agent {

/// A memfd with this content, sealed against every change.
Result<memory::OwnedFd> MakeDocument(std::string_view content, const std::string& name);

/// The content of a memfd of exactly `bytes`. InvalidArgument when it is something else than memory
/// (a pipe or a file could keep us waiting) or of another size; its offset does not matter.
Result<std::string> ReadDocument(int fd, std::uint64_t bytes);

}  // namespace rouse::agent

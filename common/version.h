// Which Rouse this is.

#pragma once

namespace rouse {

extern const char kVersion[];  ///< "0.1.0 (1a2b3c4)"; the commit is "unknown" outside of a clone.

}  // namespace rouse

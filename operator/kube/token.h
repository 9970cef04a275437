// A bearer token that may be rotated under us.

#pragma once

#include <mutex>
#include <string>

#include "common/result.h"

namespace rouse::kube {

/// Thread-safe.
class TokenSource {
 public:
  /// `file` wins over `fixed`; both empty: no token.
  TokenSource(std::string fixed, std::string file);

  /// The token to send now, empty for none. Looks at the file each time and reads it again when it
  /// is another one or has been written. While the file cannot be read, the last token is given;
  /// an error only when there is none yet.
  Result<std::string> Get();

 private:
  struct Stamp {
    std::int64_t device = -1;
    std::int64_t inode = -1;
    std::int64_t bytes = -1;
    std::int64_t changed_ns = -1;
    bool operator==(const Stamp&) const = default;
  };

  const std::string file_;
  std::mutex mutex_;
  std::string token_;  ///< Guarded by mutex_.
  Stamp stamp_;        ///< Guarded by mutex_: of the file that token_ was read from.
};

}  // namespace rouse::kube

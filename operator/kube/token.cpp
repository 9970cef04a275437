#include "operator/kube/token.h"

#include <sys/stat.h>

#include <cerrno>

#include "common/log.h"
#include "operator/kube/files.h"

namespace rouse::kube {

TokenSource::TokenSource(std::string fixed, std::string file)
    : file_(std::move(file)), token_(file_.empty() ? std::move(fixed) : std::string()) {}

Result<std::string> TokenSource::Get() {
  std::lock_guard lock(mutex_);
  if (file_.empty()) return token_;

  Status problem;
  struct stat info {};
  if (stat(file_.c_str(), &info) != 0) {
    problem = FromErrno(errno, "token file " + file_);
  } else {
    // Projected tokens are rotated by swapping a link, so the inode tells; the change time tells of
    // a file that was written in place.
    const Stamp stamp{static_cast<std::int64_t>(info.st_dev),
                      static_cast<std::int64_t>(info.st_ino),
                      static_cast<std::int64_t>(info.st_size),
                      info.st_ctim.tv_sec * INT64_C(1'000'000'000) + info.st_ctim.tv_nsec};
    if (stamp == stamp_ && !token_.empty()) return token_;
    auto content = ReadFile(file_);
    auto token = content.ok() ? CheckToken(*std::move(content), "token file " + file_)
                              : Result<std::string>(content.status());
    if (token.ok()) {
      if (!token_.empty() && *token != token_) log::Info("token rotated", {{"file", file_}});
      token_ = *std::move(token);
      stamp_ = stamp;
      return token_;
    }
    problem = token.status();
  }
  if (token_.empty()) return problem;
  log::Warning("token file cannot be read, keeping the last token", {{"error", problem.message()}});
  return token_;
}

}  // namespace rouse::kube

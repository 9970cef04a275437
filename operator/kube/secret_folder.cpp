#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "operator/kube/config.h"

namespace rouse::kube {

Result<std::shared_ptr<SecretFolder>> SecretFolder::Make() {
  const char* base = std::getenv("XDG_RUNTIME_DIR");
  if (base == nullptr || access(base, W_OK) != 0) base = std::getenv("TMPDIR");
  std::string path =
      std::string(base == nullptr || *base == '\0' ? "/tmp" : base) + "/rouse-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) {
    return FromErrno(errno, "create a folder for inline certificates at " + path +
                                "; set TMPDIR to a folder that can be written");
  }
  return std::shared_ptr<SecretFolder>(new SecretFolder(path));
}

SecretFolder::~SecretFolder() {
  Remove();
}

void SecretFolder::Remove() const {
  std::error_code ignored;  // Nobody is left to be told.
  std::filesystem::remove_all(path_, ignored);
}

Result<std::string> SecretFolder::Write(const std::string& name, const std::string& content) {
  const std::string path = path_ + "/" + name;
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) return FromErrno(errno, "create " + path);
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t wrote = write(file, content.data() + done, content.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      const Status status = FromErrno(errno, "write " + path);
      close(file);
      return status;
    }
    done += static_cast<std::size_t>(wrote);
  }
  if (close(file) != 0) return FromErrno(errno, "write " + path);
  return path;
}

}  // namespace rouse::kube

// Bundles and their files on disk, each file once under its SHA-256.
//
//   FOLDER/blobs/ab/abcd…           files, never changed once there
//   FOLDER/bundles/CLASS-FINGERPRINT.json
//   FOLDER/parts/OWNER-abcd…        files that are being fetched; one is gone on with after a
//                                   restart
//   FOLDER/kept/OWNER.json          what each agent keeps for others (kept_list.h)
//   FOLDER/lock
//
// Several agents of a node may have one folder. A file or bundle appears by a rename, when it is
// whole and its digest is right. Whoever puts in or takes out a bundle holds `lock` shared (Hold),
// and what is used least is removed by whoever gets it exclusively. Thread-safe.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "agent/memory/owned_fd.h"
#include "agent/state/bundle.h"
#include "common/result.h"

namespace rouse::agent {

struct StateStoreOptions {
  std::string folder;                            ///< Made if missing; its parent must be there.
  std::uint64_t max_bytes = UINT64_C(16) << 30;  ///< Of all files together.
  std::string owner;                             ///< Names this agent's parts: a plain name.
};

class StateStore {
 public:
  static Result<std::unique_ptr<StateStore>> Open(StateStoreOptions options);

  /// Keeps everything in the store from being removed while it lives.
  class Hold {
   public:
    explicit Hold(memory::OwnedFd fd) : fd_(std::move(fd)) {}

   private:
    memory::OwnedFd fd_;
  };
  Result<Hold> HoldAll() const;

  /// NotFound when there is none. One that does not decode, or lacks a file, is removed, and
  /// NotFound. Counts as use of the bundle.
  Result<Bundle> Find(CacheClass of, const std::string& fingerprint) const;
  /// Requires a Hold since its files were put in. ResourceExhausted when it is larger than the
  /// whole store may be, or its list than kMaxBundleText.
  Status Put(const Bundle& bundle) const;
  void Remove(CacheClass of, const std::string& fingerprint) const;

  bool Has(const std::string& sha256, std::uint64_t bytes) const;
  Result<memory::OwnedFd> OpenFile(const std::string& sha256) const;
  /// Bytes of a file, which must all be there.
  Result<std::string> Read(const std::string& sha256, std::uint64_t offset,
                           std::uint64_t bytes) const;
  /// Copies what can be read from `fd` into the store; the digest of what was copied.
  struct Imported {
    std::string sha256;
    std::uint64_t bytes = 0;
  };
  Result<Imported> Import(int fd, const std::string& what) const;
  /// For a file whose content was found to be wrong.
  void Discard(const std::string& sha256) const;

  /// How much of a file has been fetched so far, by an earlier run too.
  std::uint64_t PartBytes(const std::string& sha256) const;
  /// Adds to what has been fetched. `offset` must be PartBytes().
  Status Append(const std::string& sha256, std::uint64_t offset, std::string_view bytes) const;
  /// Puts a file of `bytes` bytes that was fetched whole in its place; DataLoss, and the part is
  /// gone, when its digest is another.
  Status Finish(const std::string& sha256, std::uint64_t bytes) const;

  /// Removes what no bundle needs, and bundles until the rest fits, those used longest ago first,
  /// but none that `keep` names (fingerprints) or that an agent keeps for others. Does nothing
  /// while somebody holds the store, nor, with a warning, when it cannot read all that is there.
  void Trim(std::set<std::string> keep) const;

  std::uint64_t max_bytes() const { return options_.max_bytes; }

 private:
  explicit StateStore(StateStoreOptions options) : options_(std::move(options)) {}
  std::string BlobPath(const std::string& sha256) const;
  std::string PartPath(const std::string& sha256) const;
  std::string BundlePath(CacheClass of, const std::string& fingerprint) const;

  const StateStoreOptions options_;
};

/// Makes a name that no other thread or process uses, in `folder`, for a file that is being
/// written.
std::string NameForNow(const std::string& folder);

/// Copies up to the end of `from`. `what` names the file in errors.
Result<std::uint64_t> CopyBytes(int from, int to, const std::string& what);

}  // namespace rouse::agent

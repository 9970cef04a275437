// Checkpoints for the tests of agent/storage: made in memory, written to a folder of their own.

#pragma once

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace rouse::storage::test {

/// A folder that is removed at the end.
class Folder {
 public:
  /// In `parent`: "/dev/shm" is memory on every Linux, the default usually a disk.
  explicit Folder(const std::filesystem::path& parent = std::filesystem::temp_directory_path());
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void Write(std::string_view name, std::string_view content) const;

 private:
  std::filesystem::path path_;
};

struct TestTensor {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::string content;  ///< Its bytes; the test answers for their number.
};

/// A safetensors file. The header is padded with blanks to end at a multiple of `alignment`.
std::string MakeShard(const std::vector<TestTensor>& tensors, std::size_t alignment = 8);

/// 8 bytes of length, `header` as it is, then `data_bytes` bytes.
std::string MakeFile(std::string_view header, std::size_t data_bytes);

std::string RandomBytes(std::size_t count, std::mt19937_64& random);

/// Tensors of random names, shapes and dtypes; some hold nothing.
std::vector<TestTensor> RandomTensors(std::size_t count, const std::string& prefix,
                                      std::mt19937_64& random);

}  // namespace rouse::storage::test

#include "agent/tests/storage_fixture.h"

#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include "common/json.h"

namespace rouse::storage::test {

Folder::Folder(const std::filesystem::path& parent) {
  std::string name = (parent / "rouse-storage-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void Folder::Write(std::string_view name, std::string_view content) const {
  std::ofstream file(path_ / name, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.flush()) throw std::runtime_error("write " + std::string(name));
}

std::string MakeFile(std::string_view header, std::size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) {
    file.push_back(static_cast<char>(static_cast<std::uint64_t>(header.size()) >> (8 * i)));
  }
  return file.append(header) + std::string(data_bytes, 'x');
}

std::string MakeShard(const std::vector<TestTensor>& tensors, std::size_t alignment) {
  json::Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const TestTensor& tensor : tensors) {
    const std::size_t begin = data.size();
    data += tensor.content;
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  while ((text.size() + 8) % alignment != 0) text.push_back(' ');
  return MakeFile(text, 0) + data;
}

std::string RandomBytes(std::size_t count, std::mt19937_64& random) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

std::vector<TestTensor> RandomTensors(std::size_t count, const std::string& prefix,
                                      std::mt19937_64& random) {
  static const std::pair<const char*, std::size_t> kKinds[] = {
      {"F32", 4}, {"BF16", 2}, {"F8_E4M3", 1}, {"I64", 8}, {"U8", 1}};
  std::vector<TestTensor> tensors;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& [dtype, bytes] = kKinds[random() % std::size(kKinds)];
    TestTensor tensor{
        .name = prefix + "." + std::to_string(random() % 1000) + "." + std::to_string(i),
        .dtype = dtype};
    std::size_t elements = 1;
    for (std::size_t d = random() % 4; d > 0; --d) {
      tensor.shape.push_back(random() % 32);
      elements *= tensor.shape.back();
    }
    tensor.content = RandomBytes(elements * bytes, random);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

}  // namespace rouse::storage::test

#include "common/base64.h"

#include <openssl/evp.h>

namespace rouse {

std::string Base64Encode(std::string_view bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int length = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(bytes.data()),
                                     static_cast<int>(bytes.size()));
  out.resize(static_cast<std::size_t>(length));
  return out;
}

Result<std::string> Base64Decode(std::string_view text, std::string_view what) {
  if (text.size() % 4 != 0) {
    return InvalidArgument(std::string(what) + ": not base64: length " +
                           std::to_string(text.size()) + " is not a multiple of 4");
  }
  if (text.empty()) return std::string();
  std::string out(text.size() / 4 * 3, '\0');
  const int length = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(text.data()),
                                     static_cast<int>(text.size()));
  if (length < 0) return InvalidArgument(std::string(what) + ": not base64");
  // EVP_DecodeBlock counts padding as bytes, and forgives what does not encode back.
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  out.resize(static_cast<std::size_t>(length) - padding);
  if (Base64Encode(out) != text) return InvalidArgument(std::string(what) + ": not base64");
  return out;
}

}  // namespace rouse

// The JSON of a safetensors header as a list of tensors: what it says, not yet whether that fits.
//
// Pure. Refuses what is no such JSON: names or fields twice, unknown or missing fields, unknown
// dtypes, wrong types, absurd shapes.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "agent/storage/safetensors.h"

namespace rouse::storage {

struct ParsedHeader {
  std::vector<FileTensor> tensors;  ///< In the order of the text; names may still come twice.
  std::string problem;              ///< What is wrong, with the tensor's name; empty if nothing.
};

ParsedHeader ParseHeader(std::string_view text);

}  // namespace rouse::storage

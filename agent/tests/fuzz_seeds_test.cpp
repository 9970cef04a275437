// The fuzzers' kept seeds, in every build: neither they nor what they found can rot.

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "agent/tests/fuzz/harness.h"
#include "agent/tests/paths.h"

namespace rouse::fuzz {
namespace {

TEST_CASE("every kept seed is handled as it should be", "[fuzz]") {
  using Harness = void (*)(std::string_view);
  const auto [name, harness] =
      GENERATE(table<std::string, Harness>({{"manifest", Manifest},
                                            {"safetensors", Safetensors},
                                            {"engine_socket", EngineSocket},
                                            {"peer_messages", PeerMessages},
                                            {"bundle", Bundle}}));
  std::vector<std::filesystem::path> seeds;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(kFuzzSeeds) + "/" + name)) {
    seeds.push_back(entry.path());
  }
  std::sort(seeds.begin(), seeds.end());
  REQUIRE(seeds.size() >= 5);
  for (const auto& seed : seeds) {
    CAPTURE(seed.string());
    std::ifstream file(seed, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    harness(text);
    // Cut and damaged in ways that need no fuzzer.
    for (std::size_t i = 0; i < text.size(); i += 1 + text.size() / 64) {
      harness(std::string_view(text).substr(0, i));
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ 1);
      harness(damaged);
    }
  }
}

}  // namespace
}  // namespace rouse::fuzz

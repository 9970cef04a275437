#include "common/log.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace rouse::log {
namespace {

using Json = nlohmann::json;

// What `act` writes to standard error, line by line.
std::vector<Json> Written(const std::function<void()>& act) {
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  std::fflush(stderr);
  const int before = ::dup(STDERR_FILENO);
  ::dup2(::fileno(file), STDERR_FILENO);
  act();
  std::fflush(stderr);
  ::dup2(before, STDERR_FILENO);
  ::close(before);
  std::rewind(file);
  std::vector<Json> lines;
  std::string line;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) {
    line += static_cast<char>(c);
    if (c != '\n') continue;
    INFO(line);
    REQUIRE(Json::accept(line));
    lines.push_back(Json::parse(line));
    line.clear();
  }
  std::fclose(file);
  CHECK(line.empty());
  return lines;
}

TEST_CASE("a line of the log is one JSON object with its fields") {
  Init("tested", Level::kInfo);
  const auto lines = Written([] {
    Info("pod \"created\"\n", {{"pod", "default/demo-1"}, {"bytes", 7}, {"peers", {"a", "b"}}});
    Error("not text", {{"error", "\xff\xfe"}});
  });
  REQUIRE(lines.size() == 2);
  Json line = lines[0];
  const std::string time = line["time"];
  CHECK(time.size() == std::string("2026-01-02T03:04:05.000000Z").size());
  CHECK(time.back() == 'Z');
  line.erase("time");
  CHECK(line == Json{{"level", "info"},
                     {"program", "tested"},
                     {"message", "pod \"created\"\n"},
                     {"pod", "default/demo-1"},
                     {"bytes", 7},
                     {"peers", {"a", "b"}}});
  CHECK(lines[1]["level"] == "error");
}

TEST_CASE("what is below the level is not written") {
  const auto levels = [](Level level) {
    Init("tested", level);
    std::string out;
    for (const Json& line : Written([] {
           Debug("d");
           Info("i");
           Warning("w");
           Error("e");
         })) {
      out += line["message"];
    }
    return out;
  };
  CHECK(levels(Level::kDebug) == "diwe");
  CHECK(levels(Level::kInfo) == "iwe");
  CHECK(levels(Level::kWarning) == "we");
  CHECK(levels(Level::kError) == "e");
  Init("rouse", Level::kInfo);
}

}  // namespace
}  // namespace rouse::log

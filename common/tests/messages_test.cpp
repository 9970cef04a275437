#include "common/messages.h"
#include "common/peer_messages.h"

#include <catch2/catch.hpp>
#include <functional>
#include <random>
#include <set>

namespace rouse {
namespace {

WeightManifest SomeManifest() {
  return {.form = WeightForm::kLoaded,
          .identity = {{"model", "demo"}, {"dtype", "bfloat16"}},
          .rank = 0,
          .arena_bytes = 5u << 20,
          .chunk_bytes = kChunkBytes,
          .allocations = {{0, 4096}, {4096, 1024}},
          .tensors = {{.name = "w",
                       .kind = TensorKind::kParameter,
                       .allocation = 0,
                       .offset = 0,
                       .shape = {32, 64},
                       .stride = {64, 1},
                       .dtype = "bfloat16"},
                      {.name = "b",
                       .kind = TensorKind::kBuffer,
                       .allocation = 1,
                       .offset = 24,
                       .shape = {},
                       .stride = {},
                       .dtype = "float32"}},
          .scalars = {{"scale", 0.5}},
          .chunk_digests = {std::string(32, 'a'), std::string(32, 'b')}};
}

Timeline SomeTimeline() {
  return {.path = StartPath::kPeer,
          .decided_at_us = 1'700'000'000'000'000,
          .phases = {{"Schedule", 0, 10}, {"Weights", 10, 30}},
          .lanes = {{"Pull", 5, 25}},
          .total_us = 30};
}

AgentReport SomeReport() {
  return {.pod_namespace = "default",
          .pod = "demo-1",
          .pod_uid = "u",
          .node = "n",
          .address = "http://10.0.0.1:7410",
          .state = AgentState::kServing,
          .message = "",
          .weights = WeightsReport{.form = WeightForm::kProcessed,
                                   .identity = std::string(64, '0'),
                                   .bytes = 7,
                                   .ranks = 1,
                                   .servable = true,
                                   .arriving = false},
          .bytes_by_source = {.peer = 7, .storage = 0},
          .transport = "tcp",
          .transport_fallback = "this node has mlx5_0:1",
          .state_origin = "from demo-0",
          .state_miss = "fx_graph missed",
          .timeline = SomeTimeline(),
          .load = EngineLoad{.running = 3, .waiting = 2},
          .keepers_digest = "0a"};
}

Assignment SomeAssignment() {
  return {
      .path = StartPath::kPeer,
      .peers = {{"a", "b", "c"}, {"d", "e", "f", true, Distance::kRack}},
      .report_after_ms = 9999,
      .siblings = {{"a", "http://10.0.0.1:7410", 7}, {"b", "", 8}},
      .keepers = {{"a", "node-a", "http://10.0.0.1:7410"}, {"c", "", "http://10.0.0.3:7410", true}},
      .keepers_digest = "0b",
      .state_copies = 2};
}

OpenResponse SomeOpenResponse() {
  return {.lease = "l",
          .lease_ms = 1000,
          .worker_address = std::string("\0\1\2", 3),
          .ranks = {{.manifest = SomeManifest(),
                     .slabs = {{.address = 0xffff800000000000, .bytes = 4u << 20, .rkey = "k"},
                               {.address = 0x1000, .bytes = 1u << 20, .rkey = "q"}}}}};
}

OpenResponse SomePartialResponse() {
  OpenResponse response = SomeOpenResponse();
  response.ranks[0].availability = RemoteSlab{.address = 0x2000, .bytes = 8, .rkey = "b"};
  return response;
}

OpenResponse SomeResponseWithinNode() {
  OpenResponse response = SomeOpenResponse();
  for (RemoteSlab& slab : response.ranks[0].slabs) slab = {.bytes = slab.bytes};
  return response;
}

OpenResponse SomeStagedResponse() {
  OpenResponse response = SomeResponseWithinNode();
  response.ranks[0].stage_bytes = 8u << 20;
  return response;
}

const StageRequest kSomeStage = {
    .lease = "l", .rank = 3, .buffer = 1, .offset = std::uint64_t{5} << 40, .bytes = 4u << 20};
const RemoteSlab kSomeStaged = {.address = 0x1000, .bytes = 4u << 20, .rkey = "k"};

ModelFiles SomeFiles() {
  return {
      .files = {{.path = "config.json", .bytes = 3, .mode = 0644, .sha256 = std::string(64, 'a')},
                {.path = "sub/t.json", .bytes = 0, .mode = 0600, .sha256 = std::string(64, 'b')}}};
}

TEST_CASE("what is staged is asked for within bounds, and answered with a key") {
  const auto without = [](json::Json document, const char* key) {
    document.erase(key);
    return document;
  };
  for (const char* key : {"lease", "rank", "buffer", "offset", "bytes"}) {
    CHECK_THAT(StageRequestFromJson(without(ToJson(kSomeStage), key)).status().message(),
               Catch::StartsWith(key));
  }
  StageRequest request = kSomeStage;
  request.buffer = kStageBuffers;
  CHECK_THAT(StageRequestFromJson(ToJson(request)).status().message(), Catch::StartsWith("buffer"));
  request = kSomeStage;
  request.bytes = 0;
  CHECK_THAT(StageRequestFromJson(ToJson(request)).status().message(), Catch::StartsWith("bytes"));
  CHECK_THAT(StagedFromJson(StagedToJson({.bytes = 5})).status().message(),
             Catch::StartsWith("slab.rkey"));
  CHECK_THAT(StagedFromJson(without(StagedToJson(kSomeStaged), "slab")).status().message(),
             Catch::StartsWith("slab"));
}

TEST_CASE("a load that no engine can have is refused, with the field's name") {
  const auto refused = [](const json::Json& load) {
    json::Json report = ToJson(SomeReport());
    report["load"] = load;
    return AgentReportFromJson(report).status().message();
  };
  CHECK_THAT(refused({{"running", 1}}), Catch::StartsWith("load.waiting"));
  CHECK_THAT(refused({{"running", -1}, {"waiting", 0}}), Catch::StartsWith("load.running"));
  CHECK_THAT(refused({{"running", 0}, {"waiting", 1.5}}), Catch::StartsWith("load.waiting"));
  CHECK_THAT(refused({{"running", 1'000'000'001}, {"waiting", 0}}),
             Catch::StartsWith("load.running"));
  CHECK_THAT(refused(7), Catch::StartsWith("load"));
  json::Json silent = ToJson(SomeReport());
  silent["load"] = nullptr;
  REQUIRE(AgentReportFromJson(silent).ok());
  CHECK_FALSE(AgentReportFromJson(silent)->load);
}

TEST_CASE("every message reads back as it was written") {
  CHECK(*AgentReportFromJson(ToJson(SomeReport())) == SomeReport());
  AgentReport bare = SomeReport();
  bare.weights.reset();
  bare.timeline.reset();
  bare.load.reset();
  CHECK(*AgentReportFromJson(ToJson(bare)) == bare);
  CHECK(*AssignmentFromJson(ToJson(SomeAssignment())) == SomeAssignment());
  Assignment alone = SomeAssignment();
  alone.expecting = false;
  CHECK(*AssignmentFromJson(ToJson(alone)) == alone);
  CHECK(*OpenRequestFromJson(ToJson(OpenRequest{"x", "ns/p"})) == OpenRequest{"x", "ns/p"});
  CHECK(*OpenRequestFromJson(ToJson(OpenRequest{"x", "ns/p", true})) ==
        OpenRequest{"x", "ns/p", true});
  CHECK(*OpenResponseFromJson(ToJson(SomeOpenResponse())) == SomeOpenResponse());
  CHECK(*OpenResponseFromJson(ToJson(SomePartialResponse())) == SomePartialResponse());
  CHECK(*OpenResponseFromJson(ToJson(SomeResponseWithinNode())) == SomeResponseWithinNode());
  CHECK(*OpenResponseFromJson(ToJson(SomeStagedResponse())) == SomeStagedResponse());
  CHECK(*LeaseRequestFromJson(ToJson(LeaseRequest{"l"})) == LeaseRequest{"l"});
  CHECK(*StageRequestFromJson(ToJson(kSomeStage)) == kSomeStage);
  CHECK(*StagedFromJson(StagedToJson(kSomeStaged)) == kSomeStaged);
  CHECK(*ModelFilesFromJson(ToJson(SomeFiles())) == SomeFiles());
  CHECK(*ManifestFromJson(ToJson(SomeManifest()), "m") == SomeManifest());
  CHECK(*TimelineFromJson(ToJson(SomeTimeline()), "t") == SomeTimeline());
}

// Every key of every object in `value`, except of maps whose keys are data.
std::vector<json::Json::json_pointer> Fields(const json::Json& value,
                                             const json::Json::json_pointer& at) {
  std::vector<json::Json::json_pointer> out;
  const bool is_map = !at.empty() && (at.back() == "identity" || at.back() == "scalars");
  if (!value.is_structured() || (value.is_object() && is_map)) return out;
  for (const auto& [key, child] : value.items()) {
    const auto here = value.is_array() ? at / std::stoul(key) : at / key;
    if (value.is_object()) out.push_back(here);
    const auto below = Fields(child, here);
    out.insert(out.end(), below.begin(), below.end());
  }
  return out;
}

TEST_CASE("leaving out any field of a message is an error that names it, unless it is optional") {
  struct Message {
    json::Json whole;
    std::function<Status(const json::Json&)> read;
    std::set<std::string> optional = {};
  };
  const std::vector<Message> messages = {
      {ToJson(SomeReport()),
       [](const auto& j) { return AgentReportFromJson(j).status(); },
       {"/message", "/transport", "/transportFallback", "/stateOrigin", "/stateMiss",
        "/keepersDigest", "/weights", "/weights/arriving", "/timeline", "/timeline/lanes",
        "/load"}},
      {ToJson(SomeAssignment()),
       [](const auto& j) { return AssignmentFromJson(j).status(); },
       {"/peers/0/partial", "/peers/0/distance", "/peers/1/partial", "/peers/1/distance",
        "/siblings", "/keepers", "/keepers/1/leaving", "/keepersDigest", "/stateCopies"}},
      {ToJson(OpenRequest{"x", "ns/p"}),
       [](const auto& j) { return OpenRequestFromJson(j).status(); },
       {"/partial"}},
      {ToJson(SomePartialResponse()),
       [](const auto& j) { return OpenResponseFromJson(j).status(); },
       {"/ranks/0/manifest/scalars", "/ranks/0/availability"}},
      {ToJson(LeaseRequest{"l"}), [](const auto& j) { return LeaseRequestFromJson(j).status(); }},
      {ToJson(SomeFiles()), [](const auto& j) { return ModelFilesFromJson(j).status(); }},
      {ToJson(SomeManifest()),
       [](const auto& j) { return ManifestFromJson(j, "m").status(); },
       {"/digest", "/scalars"}},
      {ToJson(SomeTimeline()),
       [](const auto& j) { return TimelineFromJson(j, "t").status(); },
       {"/lanes"}}};
  for (const Message& message : messages) {
    REQUIRE(message.read(message.whole).ok());
    for (const auto& field : Fields(message.whole, json::Json::json_pointer())) {
      json::Json cut = message.whole;
      cut[field.parent_pointer()].erase(field.back());
      const Status status = message.read(cut);
      INFO(message.whole.value("protocol", "")
           << " without " << field << ": " << status.ToString());
      CHECK(status.ok() == message.optional.contains(field.to_string()));
      if (!status.ok()) CHECK(status.message().find(field.back()) != std::string::npos);
    }
  }
}

TEST_CASE("another version is refused politely, with both versions in the message") {
  json::Json report = ToJson(SomeReport());
  report["version"] = 2;
  const auto read = AgentReportFromJson(report);
  CHECK(read.status().code() == StatusCode::kFailedPrecondition);
  CHECK(read.status().message().find("rouse-agent 2") != std::string::npos);
  CHECK(read.status().message().find("rouse-agent 1") != std::string::npos);
}

TEST_CASE("phases that leave a gap, overlap, or miss the total are refused") {
  for (const auto& [index, start, end] :
       std::vector<std::tuple<int, int, int>>{{1, 11, 30}, {1, 9, 30}, {1, 10, 31}, {0, 1, 10}}) {
    Timeline timeline = SomeTimeline();
    timeline.phases[static_cast<std::size_t>(index)].start_us = start;
    timeline.phases[static_cast<std::size_t>(index)].end_us = end;
    CHECK_FALSE(TimelineFromJson(ToJson(timeline), "t").ok());
  }
}

TEST_CASE("a report that would not fit into the status of its service is refused") {
  AgentReport many = SomeReport();
  many.timeline->phases.resize(33, {"FirstToken", 30, 30});
  CHECK(AgentReportFromJson(ToJson(many)).status().message().starts_with("timeline.phases: has"));
  AgentReport lanes = SomeReport();
  lanes.timeline->lanes.resize(65, {"Pull", 5, 25});
  CHECK(AgentReportFromJson(ToJson(lanes)).status().message().starts_with("timeline.lanes: has"));
  AgentReport name = SomeReport();
  name.timeline->phases[1].name.resize(65, 'x');
  CHECK(
      AgentReportFromJson(ToJson(name)).status().message().starts_with("timeline.phases[1].name"));
  AgentReport identity = SomeReport();
  identity.weights->identity.resize(129, '0');
  CHECK(AgentReportFromJson(ToJson(identity)).status().message().starts_with("weights.identity"));
}

TEST_CASE("a manifest with a tensor or allocation out of bounds is refused by name") {
  const auto refused = [](const WeightManifest& manifest, std::string_view field) {
    const auto read = ManifestFromJson(ToJson(manifest), "m");
    REQUIRE_FALSE(read.ok());
    INFO(read.status().message());
    CHECK(read.status().message().find(field) != std::string::npos);
  };
  WeightManifest m = SomeManifest();
  SECTION("allocation past the arena") {
    m.allocations[1].bytes = 6u << 20;
    refused(m, "m.allocations[1].bytes");
  }
  SECTION("allocations overlap") {
    m.allocations[1].offset = 512;
    refused(m, "m.allocations[1].offset");
  }
  SECTION("allocation not aligned") {
    m.allocations[1].offset = 4097;
    refused(m, "m.allocations[1].offset");
  }
  SECTION("tensor past its allocation") {
    m.tensors[0].shape[0] = 33;
    refused(m, "m.tensors[0].shape");
  }
  SECTION("shape times stride overflows") {
    m.tensors[0].shape = {std::int64_t{1} << 40, 2};
    m.tensors[0].stride = {std::int64_t{1} << 40, 1};
    refused(m, "m.tensors[0].shape");
  }
  SECTION("unknown dtype") {
    m.tensors[0].dtype = "float7";
    refused(m, "m.tensors[0].dtype");
  }
  SECTION("a digest too few") {
    m.chunk_digests.pop_back();
    refused(m, "m.digest.chunks");
  }
  SECTION("negative stride") {
    m.tensors[0].stride[0] = -64;
    refused(m, "m.tensors[0].stride");
  }
}

TEST_CASE("an identity that differs in one field names that field") {
  const Identity here = {{"model", "demo"}, {"dtype", "bfloat16"}};
  Identity there = here;
  CHECK(IdentityDifferences(here, there).empty());
  there["dtype"] = "float16";
  CHECK(IdentityDifferences(here, there) ==
        std::vector<std::string>{"dtype: \"bfloat16\" here, \"float16\" there"});
  there.erase("dtype");
  CHECK(IdentityDifferences(here, there) ==
        std::vector<std::string>{"dtype: \"bfloat16\" here, missing there"});
  CHECK(IdentityDigest(here) != IdentityDigest(there));
}

TEST_CASE("only two that have weight files can differ in them") {
  const Identity bare = {{"model", "demo"}};
  Identity one = bare;
  one["weightFiles"] = "a";
  Identity other = bare;
  other["weightFiles"] = "b";
  CHECK(IdentityDifferences(bare, one).empty());
  CHECK(IdentityDifferences(one, bare).empty());
  CHECK(IdentityDifferences(one, one).empty());
  CHECK(IdentityDifferences(one, other) ==
        std::vector<std::string>{"weightFiles: \"a\" here, \"b\" there"});
}

TEST_CASE("slabs that do not add up to the arena are refused") {
  OpenResponse response = SomeOpenResponse();
  response.ranks[0].slabs[0].bytes -= 1;
  CHECK(OpenResponseFromJson(ToJson(response)).status().message().find("ranks[0].slabs") == 0);
}

TEST_CASE("a lease too short to be renewed in time is refused by name") {
  OpenResponse response = SomeOpenResponse();
  response.lease_ms = kMinLeaseMs - 1;
  CHECK(OpenResponseFromJson(ToJson(response)).status().message().find("leaseMs: ") == 0);
}

TEST_CASE("a bitmap of another size than the manifest's chunks need is refused") {
  OpenResponse response = SomePartialResponse();
  response.ranks[0].availability->bytes = 16;
  CHECK(OpenResponseFromJson(ToJson(response))
            .status()
            .message()
            .find("ranks[0].availability.bytes: is 16, expected 8") == 0);
}

TEST_CASE("a rank that its manifest contradicts is refused") {
  json::Json response = ToJson(SomeOpenResponse());
  response["ranks"][0]["rank"] = 1;
  CHECK(OpenResponseFromJson(response).status().message().find("ranks[0].rank: differs") == 0);
}

TEST_CASE("file paths that could leave the model folder are refused") {
  for (const char* path :
       {"", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\\b", "a\nb"}) {
    ModelFiles files = SomeFiles();
    files.files[0].path = path;
    INFO(path);
    CHECK_FALSE(ModelFilesFromJson(ToJson(files)).ok());
  }
  ModelFiles twice = SomeFiles();
  twice.files[1].path = twice.files[0].path;
  CHECK_FALSE(ModelFilesFromJson(ToJson(twice)).ok());
}

// Mutates valid documents at random; decoding must answer, never throw or crash.
TEST_CASE("no mutation of a document gets past decoding with an exception") {
  std::mt19937 random(7);
  const std::vector<json::Json> documents = {ToJson(SomeReport()), ToJson(SomeOpenResponse()),
                                             ToJson(SomeFiles()), ToJson(SomeManifest())};
  const std::vector<json::Json> values = {
      nullptr,   -1, 1e300, UINT64_MAX, "", "x", true, json::Json::array(), json::Json::object(),
      {{"a", 1}}};
  for (int round = 0; round < 4000; ++round) {
    json::Json document = documents[random() % documents.size()];
    const json::Json flat = document.flatten();
    auto it = flat.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random() % flat.size()));
    json::Json::json_pointer pointer(it.key());
    for (auto up = random() % 3; up > 0 && !pointer.empty(); --up)
      pointer = pointer.parent_pointer();
    document[pointer] = values[random() % values.size()];
    CHECK_NOTHROW((void)AgentReportFromJson(document).ok());
    CHECK_NOTHROW((void)OpenResponseFromJson(document).ok());
    CHECK_NOTHROW((void)ModelFilesFromJson(document).ok());
    CHECK_NOTHROW((void)ManifestFromJson(document, "m").ok());
    CHECK_NOTHROW((void)AssignmentFromJson(document).ok());
  }
}

}  // namespace
}  // namespace rouse
